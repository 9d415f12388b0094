"""nftables: whole rulesets through libnftables, single elements by hand-packed messages.

The library parses text, which suits what changes rarely; it also reads sets back before it writes,
so the elements that every attach and detach moves go to the kernel directly
(linux/netfilter/nf_tables.h), at a cost that does not depend on how many there are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..errors import HostError
from ..ruleset.elements import Element
from ..ruleset.names import TABLE, Family
from . import netlink as nl
from .netlink import Message, NetlinkSocket, attribute, be32, nested

_NFNL_BATCH_BEGIN, _NFNL_BATCH_END = 0x10, 0x11
_NFNL_SUBSYS_NFTABLES = 10
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_NEWCHAIN, _GETCHAIN = 3, 4
_GETOBJ, _NEWOBJ = 19, 18

_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_TIMEOUT, _ELEM_EXPR, _ELEM_EXPRESSIONS = 1, 4, 7, 11
_DATA_VALUE = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER = 1
_OBJ_TABLE, _OBJ_NAME, _OBJ_TYPE, _OBJ_DATA = 1, 2, 3, 4
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_EXPR_NAME, _EXPR_DATA = 1, 2
_OBJECT_COUNTER = 1
#: One send stays well below the socket's buffer; larger changes are split.
_ELEMENTS_PER_BATCH = 4000
#: Each goes into the batch three times.
_RENEWED_PER_BATCH = 1000
#: Where libnftables finds the numbers of tcp, udp and others (protocols(5)); small images lack it.
_PROTOCOLS = "/etc/protocols"

_GENERIC = struct.Struct("!BBH")
_MILLISECONDS = struct.Struct("!Q")


def _message(kind: int, family: int, body: bytes, call: str, target: str, **kw: object) -> Message:
    flags = kw.get("flags", 0)
    tolerate = kw.get("tolerate", ())
    assert isinstance(flags, int)
    assert isinstance(tolerate, tuple)
    packed = _GENERIC.pack(family, 0, 0) + body
    return Message(_NFNL_SUBSYS_NFTABLES << 8 | kind, flags, packed, call, target, tolerate)


_BEGIN = Message(
    _NFNL_BATCH_BEGIN, 0, _GENERIC.pack(0, 0, _NFNL_SUBSYS_NFTABLES), "nft transaction", TABLE
)
_END = Message(
    _NFNL_BATCH_END, 0, _GENERIC.pack(0, 0, _NFNL_SUBSYS_NFTABLES), "nft transaction", TABLE
)


def _element(element: Element, lifetime_s: int | None = None) -> bytes:
    parts = nested(_ELEM_KEY, attribute(_DATA_VALUE, element.key))
    if lifetime_s is not None:
        parts += attribute(_ELEM_TIMEOUT, _MILLISECONDS.pack(lifetime_s * 1000))
    return nested(_LIST_ELEM, parts)


def _elements_message(
    kind: int, family: Family, name: str, members: Iterable[bytes], flags: int
) -> Message:
    body = nl.text(_LIST_TABLE, TABLE) + nl.text(_LIST_SET, name)
    body += nested(_LIST_ELEMENTS, *members)
    call = "nft add element" if kind == _NEWSETELEM else "nft delete element"
    return _message(kind, family, body, call, f"{family.word} {TABLE} {name}", flags=flags)


def _grouped(elements: Iterable[Element]) -> Iterator[tuple[Family, str, list[Element]]]:
    groups: dict[tuple[Family, str], list[Element]] = {}
    for element in elements:
        groups.setdefault((element.family, element.set_name), []).append(element)
    for (family, name), members in groups.items():
        # An attribute's length is 16 bits, so a list of elements is cut into several messages.
        for start in range(0, len(members), 256):
            yield family, name, members[start : start + 256]


class Nft:
    """The namespace's nftables, through one netlink socket and one libnftables context."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(nl.NETLINK_NETFILTER)
        try:
            self._library = _Library()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Give the socket and the library's context back."""
        self._socket.close()
        self._library.close()

    def run(self, text: str, *, about: str) -> None:
        """Perform nft commands as one transaction; HostError tells what was refused."""
        self._library.run(text, about)

    def read(self, text: str, *, about: str) -> str:
        """The JSON output of an nft command (libnftables-json(5))."""
        return self._library.run(text, about, json=True)

    def change(self, add: Sequence[Element] = (), remove: Sequence[Element] = ()) -> None:
        """Remove and add elements in one transaction (several, past some thousands).

        Adding what is there and removing what is not are no errors: a change may be repeated.
        """
        todo = [(_DELSETELEM, e) for e in remove] + [(_NEWSETELEM, e) for e in add]
        for start in range(0, len(todo), _ELEMENTS_PER_BATCH):
            part = todo[start : start + _ELEMENTS_PER_BATCH]
            try:
                self._transaction(part)
            except HostError as error:
                # A single absent element fails the batch it is in; then one at a time decides.
                if error.errno != errno.ENOENT or len(part) == 1:
                    raise
                self._one_by_one(part)

    def _one_by_one(self, todo: Sequence[tuple[int, Element]]) -> None:
        for kind, element in todo:
            try:
                self._transaction([(kind, element)])
            except HostError as error:
                if kind != _DELSETELEM or error.errno != errno.ENOENT:
                    raise

    def _transaction(self, todo: Sequence[tuple[int, Element]]) -> None:
        messages = []
        for kind in (_DELSETELEM, _NEWSETELEM):
            flags = nl.NLM_F_CREATE if kind == _NEWSETELEM else 0
            for family, name, members in _grouped(e for k, e in todo if k == kind):
                packed = [_element(e) for e in members]
                messages.append(_elements_message(kind, family, name, packed, flags))
        self._socket.batch(_BEGIN, messages, _END)

    def renew(self, lifetimes_s: Mapping[Element, int]) -> None:
        """Have elements of sets with timeouts stand for so long from now, whether new or not.

        One transaction (several, past a thousand). Each is added, deleted and added with its
        lifetime, as not every kernel gives an element that stands another one.
        """
        todo = list(lifetimes_s)
        for start in range(0, len(todo), _RENEWED_PER_BATCH):
            messages = []
            for family, name, members in _grouped(todo[start : start + _RENEWED_PER_BATCH]):
                bare = [_element(e) for e in members]
                timed = [_element(e, lifetimes_s[e]) for e in members]
                for kind, packed, flags in (
                    (_NEWSETELEM, bare, nl.NLM_F_CREATE),
                    (_DELSETELEM, bare, 0),
                    (_NEWSETELEM, timed, nl.NLM_F_CREATE),
                ):
                    messages.append(_elements_message(kind, family, name, packed, flags))
            self._socket.batch(_BEGIN, messages, _END)

    def elements(self, family: Family, set_name: str) -> Iterator[Element]:
        """The elements of a set without ranges."""
        for key, _parts in self._set(family, set_name):
            yield Element(family, set_name, key)

    def counted(self, family: Family, set_name: str) -> dict[bytes, int]:
        """Packets counted by each element of a set whose elements carry a counter."""
        return {key: _counted(parts) for key, parts in self._set(family, set_name)}

    def counted_one(self, element: Element) -> int:
        """Packets counted by one element; 0 where it does not exist."""
        body = nl.text(_LIST_TABLE, TABLE) + nl.text(_LIST_SET, element.set_name)
        body += nested(_LIST_ELEMENTS, _element(element))
        message = _message(
            _GETSETELEM,
            element.family,
            body,
            "nft get element",
            element.set_name,
            tolerate=(errno.ENOENT,),
        )
        kind, answer = self._socket.ask(message)
        if kind == nl.NLMSG_ERROR:
            return 0
        return sum(_counted(parts) for _key, parts in _members(answer))

    def counters(self) -> dict[str, int]:
        """Packets of our named counters, as `family/name`."""
        found: dict[str, int] = {}
        for family in Family:
            body = nl.text(_OBJ_TABLE, TABLE) + be32(_OBJ_TYPE, _OBJECT_COUNTER)
            message = _message(_GETOBJ, family, body, "nft list counters", family.word)
            for kind, answer in self._socket.dump(message):
                if kind & 0xFF != _NEWOBJ:
                    continue
                parts = nl.attributes(answer, 4)
                if nl.zero_terminated(parts.get(_OBJ_TABLE, b"")) != TABLE:
                    continue
                name = nl.zero_terminated(parts.get(_OBJ_NAME, b""))
                found[f"{family.word}/{name}"] = _counter(parts.get(_OBJ_DATA, b""))
        return found

    def chains(self) -> set[str]:
        """Names of the chains of our inet table; empty when there is no such table."""
        message = _message(_GETCHAIN, Family.INET, b"", "nft list chains", TABLE)
        return {
            nl.zero_terminated(parts[_CHAIN_NAME])
            for kind, answer in self._socket.dump(message)
            if kind & 0xFF == _NEWCHAIN
            for parts in [nl.attributes(answer, 4)]
            if nl.zero_terminated(parts.get(_CHAIN_TABLE, b"")) == TABLE
        }

    def _set(self, family: Family, set_name: str) -> Iterator[tuple[bytes, dict[int, bytes]]]:
        body = nl.text(_LIST_TABLE, TABLE) + nl.text(_LIST_SET, set_name)
        target = f"{family.word} {TABLE} {set_name}"
        # Tables of another release may lack a set; there is nothing in it then.
        message = _message(
            _GETSETELEM, family, body, "nft list set", target, tolerate=(errno.ENOENT,)
        )
        for kind, answer in self._socket.dump(message):
            if kind & 0xFF == _NEWSETELEM:
                yield from _members(answer)


def _members(answer: bytes) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    listed = nl.attributes(answer, 4).get(_LIST_ELEMENTS, b"")
    for _kind, payload in nl.attribute_list(listed):
        parts = nl.attributes(payload)
        key = nl.attributes(parts.get(_ELEM_KEY, b"")).get(_DATA_VALUE, b"")
        yield key, parts


def _counted(parts: dict[int, bytes]) -> int:
    """What the counter among an element's statements says: its only one, or one of a list."""
    statements = [parts[_ELEM_EXPR]] if _ELEM_EXPR in parts else []
    statements += [each for _kind, each in nl.attribute_list(parts.get(_ELEM_EXPRESSIONS, b""))]
    for statement in map(nl.attributes, statements):
        if nl.zero_terminated(statement.get(_EXPR_NAME, b"")) == "counter":
            return _counter(statement.get(_EXPR_DATA, b""))
    return 0


def _counter(data: bytes) -> int:
    return int.from_bytes(nl.attributes(data).get(_COUNTER_PACKETS, b""), "big")


class _Library:
    """libnftables(3), the little of it that is needed."""

    _OUTPUT_JSON = 1 << 4

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise HostError(
                "dlopen", "libnftables.so.1", 0, f"{error}; install the package libnftables1"
            ) from None
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        self._lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(self._lib, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(self._lib, name).argtypes = [ctypes.c_void_p]
            getattr(self._lib, name).restype = ctypes.c_char_p
        self._lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        self._lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise HostError("nft_ctx_new", "libnftables", errno.ENOMEM)
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)

    def run(self, text: str, about: str, *, json: bool = False) -> str:
        if not self._context:
            raise HostError("nft", about, errno.EBADF, "this guestnet is closed")
        self._lib.nft_ctx_output_set_flags(self._context, self._OUTPUT_JSON if json else 0)
        status = self._lib.nft_run_cmd_from_buffer(self._context, text.encode())
        output: bytes = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        errors: bytes = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        if status != 0:
            # The first line names the place and the reason; the rest quotes the command.
            detail = errors.decode(errors="replace").strip().split("\n")[0]
            if not os.path.exists(_PROTOCOLS):
                detail += f"; there is no {_PROTOCOLS}; install the package netbase"
            raise HostError("nft", about, 0, detail)
        return output.decode(errors="replace")

    def close(self) -> None:
        if self._context:
            self._lib.nft_ctx_free(self._context)
            self._context = None
