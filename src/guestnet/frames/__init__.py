"""Ethernet frames on their way between a VMM's socket and a guest's TAP, as bytes and words.

The boundary: no sockets, no files, no time. `transport` is what an owner may ask for, `framing` how
frames lie in a stream of bytes and how long they may be, `virtio` the header that may precede each.
Room `pump` owns the descriptors.
"""
