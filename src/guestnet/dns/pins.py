"""Pins: which guest was told that a name is at which address, and until when.

A rule that allows a name allows a flow only to an address that this guest was given for it; so a
name in a TLS hello is believed only where the resolver agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .codes import MAX_TTL_S, MIN_TTL_S, Address

#: A page pulls in some hundred names, a package manager fewer; a guest that asks for more at once
#: is scanning, and loses its oldest.
DEFAULT_MAX_NAMES = 1024
#: As many as one response can carry; the answers of a round robin add up to few more.
DEFAULT_MAX_ADDRESSES = 64
#: A pin outlives its TTL, as clients do: libcurl and Chromium keep an address for 60 seconds
#: whatever its TTL, and may then try a list of them one after the other for as long again.
GRACE_S = 120.0
#: `expire` looks at deadlines this coarsely: one set of names for each.
_BUCKET_S = 16


class _Name:
    __slots__ = ("bucket", "learnt_at", "until")

    def __init__(self) -> None:
        self.learnt_at = 0.0
        #: Deadline of each address, oldest learnt first; grace included.
        self.until: dict[Address, float] = {}
        self.bucket = -1


class _Guest:
    __slots__ = ("by_address", "names")

    def __init__(self) -> None:
        #: Oldest learnt first.
        self.names: dict[str, _Name] = {}
        self.by_address: dict[Address, set[str]] = {}


class Pins:
    """What every guest was told. Names are canonical text, guests the owner's ids.

    A full cap evicts: the name of that guest, or the address of that name, learnt longest ago.
    Guests are not capped: whoever detaches one calls `forget`. `on_evicted` is called with the
    guest and the seconds that have gone by, at least, since it was told what it loses.
    """

    def __init__(
        self,
        max_names_per_guest: int = DEFAULT_MAX_NAMES,
        max_addresses_per_name: int = DEFAULT_MAX_ADDRESSES,
    ) -> None:
        self.on_evicted: Callable[[str, float], None] = lambda _guest, _age_s: None
        if max_names_per_guest < 1 or max_addresses_per_name < 1:
            raise ValueError("a cap of pins is at least 1")
        self._max_names = max_names_per_guest
        self._max_addresses = max_addresses_per_name
        self._guests: dict[str, _Guest] = {}
        #: Names by the coarse time at which their last address is due.
        self._due: dict[int, set[tuple[str, str]]] = {}

    def learn(
        self, guest: str, name: str, addresses: Iterable[tuple[Address, float]], now: float
    ) -> bool:
        """The guest was just told that `name` is at these addresses, each until a time.

        A time is held between one second and one day from `now`; an earlier, longer promise stays.
        Returns whether anything of it is new.
        """
        fresh = list(addresses)
        if not fresh:
            return False
        known = self._guests.get(guest)
        if known is None:
            known = self._guests[guest] = _Guest()
        pin = known.names.pop(name, None)
        if pin is None:
            pin = _Name()
        elif all(pin.until.get(address, 0.0) >= until + GRACE_S for address, until in fresh):
            known.names[name] = pin  # a hit of the cache promises nothing new
            pin.learnt_at = now
            return False
        known.names[name] = pin
        pin.learnt_at = now
        for address, until in fresh:
            deadline = min(max(until, now + MIN_TTL_S), now + MAX_TTL_S) + GRACE_S
            # Learnt again is learnt last: popped, so that it goes to the end of the line.
            before = pin.until.pop(address, 0.0) if pin.until else 0.0
            pin.until[address] = max(before, deadline)
            names = known.by_address.get(address)
            if names is None:
                known.by_address[address] = {name}
            else:
                names.add(name)
        while len(pin.until) > self._max_addresses:
            oldest = next(iter(pin.until))
            del pin.until[oldest]
            _unlink(known, oldest, name)
            self.on_evicted(guest, 0.0)
        self._schedule(guest, name, pin)
        while len(known.names) > self._max_names:
            first, pin = next(iter(known.names.items()))
            self._drop(guest, known, first)
            self.on_evicted(guest, now - pin.learnt_at)
        return True

    def is_pinned(self, guest: str, name: str, address: Address, now: float) -> bool:
        """Whether the guest may still take `name` to be at `address`."""
        known = self._guests.get(guest)
        pin = known.names.get(name) if known else None
        return pin is not None and pin.until.get(address, now) > now

    def names_of(self, guest: str, address: Address, now: float) -> tuple[str, ...]:
        """Every name the guest was told is at `address`, sorted; bounded by its names."""
        known = self._guests.get(guest)
        if known is None:
            return ()
        names = known.by_address.get(address, ())
        standing = [name for name in names if known.names[name].until[address] > now]
        return tuple(sorted(standing))

    def promised(self, guest: str, name: str, now: float) -> tuple[tuple[Address, float], ...]:
        """Where the guest was told that `name` is until a time, as far as that has not come."""
        known = self._guests.get(guest)
        pin = known.names.get(name) if known else None
        if pin is None:
            return ()
        return tuple(
            (address, t - GRACE_S) for address, t in pin.until.items() if t - GRACE_S > now
        )

    def all(self) -> list[tuple[str, str]]:
        """Every guest's every name."""
        return [(id, name) for id, known in self._guests.items() for name in known.names]

    def forget(self, guest: str) -> None:
        """The guest is gone; the next one of that id starts with nothing."""
        known = self._guests.get(guest)
        if known is not None:
            for name in list(known.names):
                self._drop(guest, known, name)

    def expire(self, now: float) -> int:
        """Free the names whose last address is past; how many. Costs what it frees, little else.

        Lookups never return what is past, so this is about memory alone: once a minute will do.
        """
        freed = 0
        for bucket in [bucket for bucket in self._due if (bucket + 1) * _BUCKET_S <= now]:
            for guest, name in list(self._due[bucket]):
                self._drop(guest, self._guests[guest], name)
                freed += 1
        return freed

    def _schedule(self, guest: str, name: str, pin: _Name) -> None:
        bucket = int(max(pin.until.values()) // _BUCKET_S)
        if bucket != pin.bucket:
            self._unschedule(guest, name, pin)
            self._due.setdefault(bucket, set()).add((guest, name))
            pin.bucket = bucket

    def _unschedule(self, guest: str, name: str, pin: _Name) -> None:
        due = self._due.get(pin.bucket)
        if due is not None:
            due.discard((guest, name))
            if not due:
                del self._due[pin.bucket]

    def _drop(self, guest: str, known: _Guest, name: str) -> None:
        pin = known.names.pop(name)
        for address in pin.until:
            _unlink(known, address, name)
        self._unschedule(guest, name, pin)
        if not known.names:
            self._guests.pop(guest, None)


def _unlink(known: _Guest, address: Address, name: str) -> None:
    names = known.by_address.get(address)
    if names is not None:
        names.discard(name)
        if not names:
            del known.by_address[address]
