"""A guest's TCP connection: whom it asks for, and its bytes moved by the kernel.

`spoken`, `hello`, `http`, `first` and `requests` read what a guest wrote. They are pure: bytes in,
a value, `None` (more is needed) or one documented error out, and what a prefix of a stream was
answered holds for the rest of it. They decide nothing: whether a name may be reached is the
policy's to say.

`reactor`, `pipes`, `way` and `relay` own descriptors. They never look at a byte: the kernel moves
it from socket to socket, and only a count of it comes by here.
"""
