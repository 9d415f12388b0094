"""Processes that carry frames between a VMM's socket and a guest's TAP, one for each guest.

The boundary: `__main__`, `loop`, `stream`, `dgram` and `wire` run in a process without rights of
its own (`kernel.confine`), which is handed every descriptor it needs and reads what a VMM wrote.
The VMM may be its guest's by then. `supervisor` starts it, hears it and starts it again; `places`
makes the socket files; `handout` gives the open TAP away instead.
"""
