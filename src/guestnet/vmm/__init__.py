"""An `Attachment` in each VMM's own words, and in those of the guest that boots on it.

The boundary: values in, text and JSON-able values out. Nothing here opens, reads or runs anything,
so what is said is what the attachment says, not what the machine does. A guest's id is in no
output: it is its owner's free text, and these outputs go to shells, config files and C sources.

`render(attachment, "qemu")` gives both forms; `FORMATS` lists what there is. The modules behind
them hold typed functions for one VMM each.
"""

from __future__ import annotations

from .formats import FORMATS, Format, Rendered, format_named, render

__all__ = ["FORMATS", "Format", "Rendered", "format_named", "render"]
