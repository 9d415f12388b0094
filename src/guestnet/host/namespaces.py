"""Network namespaces that are made for guests, and go with them."""

from __future__ import annotations

from ..kernel.interface import Site
from ..model import Attachment

#: Asked for as a guest's namespace: one of its own. A name `new` is written as a path.
NEW_NAMESPACE = "new"


class GuestNamespaces:
    """Those that were made here; what runs in one keeps it when it is dropped."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._paths: set[str] = set()

    def of(self, attachment: Attachment | None) -> str | None:
        """The path of an attachment's namespace, if that was made here."""
        path = attachment.netns if attachment is not None else None
        return path if path in self._paths else None

    def make(self) -> str:
        """The path of a new one."""
        path = self._site.new_namespace()
        self._paths.add(path)
        return path

    def drop(self, path: str | None) -> None:
        """Let go of a namespace, if it was made here."""
        if path is not None and path in self._paths:
            self._paths.discard(path)
            self._site.drop_namespace(path)
