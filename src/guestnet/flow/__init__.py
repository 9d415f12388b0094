"""A guest's TCP connection: whom it asks for, and its bytes moved by the kernel.

`spoken`, `hello`, `http`, `first` and `requests` read what a guest wrote. They are pure: bytes in,
a value, `None` (more is needed) or one documented error out, and what a prefix of a stream was
answered holds for the rest of it. They decide nothing: whether a name may be reached is the
policy's to say.

`reactor`, `pipes`, `way` and `relay` own descriptors. They never look at a byte: the kernel moves
it from socket to socket, and only a count of it comes by here.
"""

from .first import First, is_address, read_first
from .hello import Hello, NotHello, read_client_hello
from .http import Head, NotHttp, read_request_head
from .pipes import PipePool
from .reactor import Reactor, Timer
from .relay import Ended, Flow, Reason, Relay
from .requests import Requests
from .spoken import NotName, spoken_name
from .way import Refused

__all__ = [
    "Ended",
    "First",
    "Flow",
    "Head",
    "Hello",
    "NotHello",
    "NotHttp",
    "NotName",
    "PipePool",
    "Reactor",
    "Reason",
    "Refused",
    "Relay",
    "Requests",
    "Timer",
    "is_address",
    "read_client_hello",
    "read_first",
    "read_request_head",
    "spoken_name",
]
