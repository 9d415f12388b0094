"""What a TAP is as a network interface: found, measured, set up, addressed.

`Control` is one socket of the network namespace in which it was made, so that a TAP stays under
control of its owner whichever namespace the calling thread is in later. ioctls do what they can do;
two things they cannot do well go by rtnetlink on the same socket:

- *who is attached*: only RTM_GETLINK tells how many queues of a multi-queue TAP are in use.
- *addresses*: SIOCSIFADDR first installs a class-wide prefix (10.0.0.1 is 10.0.0.0/8 until the
  netmask follows), which would pull a whole network's routes to the guest for a moment.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from ...errors import HostError
from . import ioctl
from .ioctl import Ioctl

Interface = IPv4Interface | IPv6Interface

RTM_NEWADDR, RTM_DELADDR, RTM_GETLINK = 20, 21, 18
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
NLMSG_ERROR = 2
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_CARRIER = 1, 3, 4, 18, 33
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_TUN_OWNER, IFLA_TUN_GROUP, IFLA_TUN_TYPE = 1, 2, 3
IFLA_TUN_PERSIST, IFLA_TUN_MULTI_QUEUE = 6, 7
IFLA_TUN_NUM_QUEUES, IFLA_TUN_NUM_DISABLED_QUEUES = 8, 9
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 0x02
_NLA_TYPE_MASK = 0x3FFF
_TUN_TYPE_TAP = 2

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER_BYTES = 64 * 1024

_IPV6_DETAIL = "IPv6 needs an MTU of at least 1280 and net.ipv6.conf.{name}.disable_ipv6=0"


@dataclass(frozen=True, slots=True)
class Device:
    """An interface as RTM_GETLINK shows it; the TAP fields are False, None or 0 for other kinds."""

    ifindex: int
    name: str
    #: "tun" for TAP and TUN devices; "" for a physical or loopback one.
    kind: str
    mac: str
    mtu: int
    is_tap: bool
    persistent: bool
    multi_queue: bool
    #: uid and gid that may attach; `None` if unset.
    owner: int | None
    group: int | None
    #: Open queues, disabled ones too; for a single-queue TAP 0 or 1, from its carrier.
    queues_held: int


class Control:
    """Questions and orders about interfaces of one network namespace. Raises `HostError`."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
        except OSError as error:
            raise HostError.from_os("socket", "NETLINK_ROUTE", error) from None
        self._sequence = 0
        # Two threads that ask at once must not read each other's answers.
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the socket; closing twice is fine."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    # -- by ioctl ----------------------------------------------------------------------------

    def ifindex(self, name: str) -> int:
        """The kernel's number of the interface."""
        return ioctl.unpack_int(self._by_pointer(Ioctl.SIOCGIFINDEX, ioctl.pack_int(name), name))

    def mtu(self, name: str) -> int:
        """Bytes."""
        return ioctl.unpack_int(self._by_pointer(Ioctl.SIOCGIFMTU, ioctl.pack_int(name), name))

    def set_mtu(self, name: str, mtu: int) -> None:
        """Bytes; needs CAP_NET_ADMIN."""
        detail = "changing an MTU needs CAP_NET_ADMIN" if os.geteuid() else ""
        self._by_pointer(Ioctl.SIOCSIFMTU, ioctl.pack_int(name, mtu), name, detail)

    def is_up(self, name: str) -> bool:
        """Administratively up (IFF_UP)."""
        return bool(self._flags(name) & ioctl.IFF_UP)

    def set_up(self, name: str, up: bool) -> None:
        """Bring up or down; needs CAP_NET_ADMIN."""
        flags = self._flags(name)
        wanted = flags | ioctl.IFF_UP if up else flags & ~ioctl.IFF_UP
        self._by_pointer(Ioctl.SIOCSIFFLAGS, ioctl.pack_flags(name, wanted), name)

    def _flags(self, name: str) -> int:
        data = self._by_pointer(Ioctl.SIOCGIFFLAGS, ioctl.pack_flags(name, 0), name)
        return ioctl.unpack_flags(data)[1]

    def _by_pointer(self, request: Ioctl, data: bytes, name: str, detail: str = "") -> bytes:
        return ioctl.by_pointer(self._socket.fileno(), request, data, name, detail)

    # -- by rtnetlink ------------------------------------------------------------------------

    def find(self, name: str) -> Device | None:
        """The interface of that name, or None."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        body += _attribute(IFLA_IFNAME, name.encode() + b"\0")
        try:
            return _device(self._ask(RTM_GETLINK, 0, body, "RTM_GETLINK", name))
        except HostError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def add_address(self, name: str, interface: Interface) -> None:
        """Give the interface an address; one that is there already is refreshed.

        An IPv6 address skips duplicate detection: a guest could otherwise deny the host its
        gateway address by answering for it (RFC 4862 section 5.4).
        """
        body = self._address(name, interface)
        detail = ""
        if interface.version == 6:
            body += _attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD))
            detail = _IPV6_DETAIL.format(name=name)
        elif interface.network.prefixlen < 31:
            body += _attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
        flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
        self._ask(RTM_NEWADDR, flags, body, "RTM_NEWADDR", f"{interface} on {name}", detail)

    def remove_address(self, name: str, interface: Interface) -> None:
        """Take an address away; one that is not there is fine."""
        body = self._address(name, interface)
        try:
            self._ask(RTM_DELADDR, NLM_F_ACK, body, "RTM_DELADDR", f"{interface} on {name}")
        except HostError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise

    def _address(self, name: str, interface: Interface) -> bytes:
        family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
        packed = interface.ip.packed
        head = _ADDRESS.pack(family, interface.network.prefixlen, 0, 0, self.ifindex(name))
        return head + _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)

    def _ask(
        self, kind: int, flags: int, body: bytes, call: str, target: str, detail: str = ""
    ) -> bytes:
        """One request, one answer: its body, or b"" for an acknowledgement."""
        with self._lock:
            try:
                number, answer = self._exchange(kind, flags, body)
            except OSError as error:
                raise HostError.from_os(call, target, error, detail) from None
        if number:
            raise HostError(call, target, number, detail)
        return answer

    def _exchange(self, kind: int, flags: int, body: bytes) -> tuple[int, bytes]:
        """Return the kernel's errno (0 for none) and the answer's body."""
        self._sequence += 1
        size = _HEADER.size + len(body)
        head = _HEADER.pack(size, kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.sendto(head + body, (0, 0))
        while True:
            data = self._socket.recv(_ANSWER_BYTES)
            length, kind, _flags, sequence, _port = _HEADER.unpack_from(data)
            if sequence != self._sequence:
                continue  # left over from a request whose reading a signal handler broke off
            if kind == NLMSG_ERROR:
                return -struct.unpack_from("=i", data, _HEADER.size)[0], b""
            return 0, data[_HEADER.size : length]


def _attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return  # the kernel never sends one; without this the loop would not end
        yield kind & _NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _device(body: bytes) -> Device:
    index = _LINK.unpack_from(body)[2]
    link = dict(_attributes(body[_LINK.size :]))
    info = dict(_attributes(link.get(IFLA_LINKINFO, b"")))
    kind = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
    tun = dict(_attributes(info.get(IFLA_INFO_DATA, b""))) if kind == "tun" else {}
    return Device(
        ifindex=index,
        name=link[IFLA_IFNAME].rstrip(b"\0").decode("utf-8", "replace"),
        kind=kind,
        mac=link.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(link.get(IFLA_MTU)) or 0,
        is_tap=_number(tun.get(IFLA_TUN_TYPE)) == _TUN_TYPE_TAP,
        persistent=bool(_number(tun.get(IFLA_TUN_PERSIST))),
        multi_queue=bool(_number(tun.get(IFLA_TUN_MULTI_QUEUE))),
        owner=_number(tun.get(IFLA_TUN_OWNER)),
        group=_number(tun.get(IFLA_TUN_GROUP)),
        queues_held=_queues_held(tun, bool(_number(link.get(IFLA_CARRIER)))),
    )


def _queues_held(tun: dict[int, bytes], carrier: bool) -> int:
    """The kernel counts queues of multi-queue devices only; the carrier of others says 0 or 1."""
    if not tun:
        return 0
    if _number(tun.get(IFLA_TUN_MULTI_QUEUE)):
        open_queues = _number(tun.get(IFLA_TUN_NUM_QUEUES)) or 0
        return open_queues + (_number(tun.get(IFLA_TUN_NUM_DISABLED_QUEUES)) or 0)
    return int(carrier or not _number(tun.get(IFLA_TUN_PERSIST)))


def _number(payload: bytes | None) -> int | None:
    """An unsigned attribute of 8 or 32 bits, in the machine's byte order."""
    if payload is None:
        return None
    return int(struct.unpack("=B" if len(payload) == 1 else "=I", payload)[0])
