"""What this package's processes are allowed."""

from __future__ import annotations

import resource


def many_descriptors() -> None:
    """As many as may be had: thousands of flows are open at a time, at every place they pass."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
