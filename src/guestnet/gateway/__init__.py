"""The process that reads what guests wrote: questions to resolvers, first bytes of connections.

The boundary: everything here but `supervisor` and `doorway` runs in a process of its own, without
rights (`confine`), which is handed its sockets, told of guests and policies by messages, and
reports what it decided. If it dies, it is started again and told everything once more; flows that
need it are refused meanwhile, and forwarded ones do not notice.
"""

from .messages import AddPins, SetGuest
from .supervisor import Gateway

__all__ = ["AddPins", "Gateway", "SetGuest"]
