"""Asking upstream once for all who want to know the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..dns import Response
from ..flow.reactor import Reactor
from ..naming import Upstream
from .secure import Secure
from .upstreams import Query

Waiting = Callable[[Response | str], None]

#: Questions of all guests that wait for upstreams; more are answered SERVFAIL.
ALL_ASKING = 4096


class Asking:
    """The questions on their way to upstreams, and who waits for each."""

    def __init__(self, reactor: Reactor, secure: Secure) -> None:
        self._reactor = reactor
        self._secure = secure
        self._waiting: dict[tuple[object, ...], list[Waiting]] = {}

    @property
    def is_full(self) -> bool:
        """Whether one more question has to be refused for now."""
        return len(self._waiting) >= ALL_ASKING

    def ask(
        self,
        upstreams: tuple[Upstream, ...],
        name: str,
        qtype: int,
        done: Waiting,
        *,
        dnssec: bool = False,
        checking_disabled: bool = False,
    ) -> None:
        """Have `done` called with the answer, or the reason why there is none."""
        key = (name, qtype, upstreams, dnssec, checking_disabled)
        known = self._waiting.get(key)
        if known is not None:
            known.append(done)
            return
        waiting = self._waiting[key] = [done]

        def finished(result: Response | str) -> None:
            del self._waiting[key]
            for each in waiting:
                # One turn each: what fails for one guest's question must not keep others waiting.
                self._reactor.call_soon(partial(each, result))

        Query(
            self._reactor, self._secure, upstreams, name, qtype, finished,
            dnssec=dnssec, checking_disabled=checking_disabled,
        ).start()  # fmt: skip
