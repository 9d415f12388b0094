"""The process inside: `python -m guestnet.kernel.rootless.agent CONTROL`.

It makes the namespaces, and then does what a `NamespaceSite` does for whoever holds the other end
of the control socket. It waits for nothing else, so one thing is done at a time.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter

from ...errors import ConfigError, GuestnetError, HostError
from ...plan import MakeDevice, Step
from .. import link, sysctl
from .. import netlink as nl
from ..netlink import NetlinkSocket
from ..netns import CLONE_NEWNET, inside, may_enter, open_netns, own_user_namespace
from ..process import die_with_parent, hear_signals
from ..site import NamespaceSite
from ..sysctl import Sysctls
from .channel import Channel

#: Programs may ping, as they may not open raw sockets. Their connections end at the gateway, on
#: this machine, so they are not paced: BBR, where it is the machine's default, takes half of what
#: they send, and every kernel has Reno, for every user (tcp(7)).
_GUEST_SETTINGS = {"ipv4/ping_group_range": "0 0", "ipv4/tcp_congestion_control": "reno"}


class InnerSysctls(Sysctls):
    """Those of the site, which may not be written to: a container's /proc/sys is read-only."""

    def write(self, values: Mapping[str, str]) -> None:
        """Set settings, as far as the machine lets.

        Without forwarding guests do not reach each other; nothing else is forwarded here.
        """
        for key, value in values.items():
            try:
                super().write({key: value})
            except HostError as error:
                if error.errno != errno.EROFS:
                    raise


class InnerSite(NamespaceSite):
    """The site as seen from inside, where the only user there is has the number 0."""

    def __init__(self, uid: int) -> None:
        super().__init__()
        self.sysctls = InnerSysctls(None)
        #: The number outside of that user.
        self._uid = uid

    def perform(self, steps: Iterable[Step]) -> None:
        """Do the steps; a TAP belongs to the site's user, whatever number that has outside."""
        super().perform([self._translated(step) for step in steps])

    def new_namespace(self) -> str:
        """A guest's namespace, with `_GUEST_SETTINGS` as far as the machine lets."""
        path = super().new_namespace()
        with inside(self._made[path]):
            for key, value in _GUEST_SETTINGS.items():
                with suppress(HostError):
                    sysctl.write(key, value)
        return path

    def _translated(self, step: Step) -> Step:
        if not isinstance(step, MakeDevice):
            return step
        device = step.device
        if device.netns is not None:
            _check_below(device.netns)
        for key, asked, own in (("owner", device.owner, self._uid), ("group", device.gid, None)):
            if asked not in (None, own):
                right = "without root a TAP is its user's alone; leave it out"
                raise ConfigError(key, asked, right)
        return replace(step, device=replace(device, owner=None))


def _check_below(netns: str) -> None:
    """Raise `ConfigError` for a namespace of which this process's user namespace is not root."""
    fd = open_netns(netns)
    try:
        if not may_enter(fd):
            right = "belongs to another user namespace; netns=new makes one that is the site's"
            raise ConfigError("netns", netns, right)
    finally:
        os.close(fd)


def enter(uid: int, gid: int) -> None:
    """Give this process a user namespace of which it is root, and a network namespace in it."""
    own_user_namespace((uid, gid), (0, 0), CLONE_NEWNET)
    with NetlinkSocket(nl.NETLINK_ROUTE) as route:
        route.request([link.set_link("lo", up=True)])


def serve(channel: Channel, site: NamespaceSite) -> None:
    """Do what is asked until the other end is gone."""
    while True:
        name, args, kwargs = channel.receive()
        try:
            answer = True, attrgetter(name)(site)(*args, **kwargs)
        except GuestnetError as error:
            answer = False, error
        except Exception as error:
            logging.getLogger(__name__).exception("%s", name)
            answer = False, HostError(name, "the rootless site", 0, repr(error))
        for copied in channel.send(answer):
            copied.close()


def main() -> None:
    """Make the namespaces, say so, and serve."""
    die_with_parent()
    hear_signals()
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        # A Ctrl-C in the owner's terminal is the owner's to hear.
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="guestnet-site: %(message)s")
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    uid, gid = os.geteuid(), os.getegid()
    try:
        enter(uid, gid)
        site = InnerSite(uid)
    except GuestnetError as error:
        channel.send((False, error))
        return
    channel.send((True, None))
    with suppress(EOFError, BrokenPipeError):
        serve(channel, site)
    os._exit(0)  # the owner waits for the end, and not for Python to take its modules apart


if __name__ == "__main__":
    main()
