"""Settings of the machine that guests need, and what they were before."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..kernel.interface import Site
from ..kernel.sysctl import Change
from ..store import Store

_NOTE = "sysctl-before"


class SysctlChanges:
    """Changes of settings, by their paths below net/, that remember the former values."""

    def __init__(self, store: Store, site: Site) -> None:
        self._store = store
        self._site = site

    def former(self) -> dict[str, str]:
        """What the settings that were changed had been."""
        found = json.loads(self._store.note(_NOTE) or "{}")
        return {str(key): str(value) for key, value in found.items()}

    def make(self, changes: Mapping[str, Change]) -> None:
        """Make changes (former, wanted); where None is wanted, the value is noted only."""
        if not changes:
            return
        # Noted first: whatever happens in between, the former values are known.
        former = {key: before for key, (before, _wanted) in changes.items()}
        self._store.take_note(_NOTE, json.dumps({**former, **self.former()}))
        wanted = {key: new for key, (_before, new) in changes.items() if new is not None}
        self._site.sysctls.write(wanted)

    def undo(self) -> None:
        """Give all that were changed their former values back."""
        self._site.sysctls.restore(self.former())
        self._store.take_note(_NOTE, "{}")
