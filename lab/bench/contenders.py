"""The ways for a guest to the far end that `bench relay`, `rootless` and `dns` compare.

Each is a context that yields a `Contender`: a guest's namespace, the far end's, and the process
that moves the bytes, if one does. Each has a stage of its own, with the same links as the others'.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from guestnet import Host

from .. import processes
from ..netns import Namespace
from .crowd import state_directory
from .ends import ECHO, HELLO, SOURCE
from .forward import plain_side
from .policy import IPERF_PORT
from .stage import FAR_IPV4, Stage

#: Below this are all names that the benchmarks ask for, and this is the far end's.
SUFFIX = "bench.test"
NAME = f"far.{SUFFIX}"
#: All names below `z0`, `z1` … below the suffix are at one address each, from this one on: a guest
#: of guestnet may have some thousand pins in the kernel at a time.
ZONES, ZONES_AT = 512, IPv4Address("64.0.0.1")
_READY_S = 10.0
#: A connection that was reset is forgotten soon, or the NAT's table would fill.
_CLOSE_TIMEOUT_S = 1


@dataclass(frozen=True)
class Contender:
    """One way to the far end."""

    words: str
    guest: Namespace
    far: Namespace
    #: Of the processes that move the bytes; none where the kernel does.
    pids: tuple[int, ...] = ()
    #: Where the guest's questions go.
    resolver: str = ""


@contextlib.contextmanager
def plain() -> Iterator[Contender]:
    """A veth behind forwarding and masquerade, made by hand."""
    with Stage() as stage:
        side = plain_side(stage)
        yield Contender("plain NAT", side.guest, side.far)


@contextlib.contextmanager
def guestnet(policies: dict[str, str]) -> Iterator[list[Contender]]:
    """Guests of one guestnet, by the words for them and their policies; names are pinned."""
    with Stage() as stage, state_directory() as state, upstream(stage.far):
        stage.site.sysctl("netfilter.nf_conntrack_tcp_timeout_close", _CLOSE_TIMEOUT_S)
        with stage.site.enter(), Host.open(state) as host:
            host.create_network({"name": "default", "dns": [str(FAR_IPV4)], "ipv6": None})
            yield [_attached(stage, host, *each) for each in policies.items()]
            for attachment in host.attachments():
                host.detach(attachment.guest)


def _attached(stage: Stage, host: Host, words: str, policy: str) -> Contender:
    guest = stage.add_guest()
    attachment = host.attach(words.replace(" ", "-"), netns=str(guest.path), policy=policy)
    resolver = str(attachment.gateway_ipv4)
    gateway = host._relays.gateway  # what it costs is asked of the kernel, by its pid
    if gateway is None or SUFFIX not in policy:
        return Contender(words, guest, stage.far, (), resolver)
    deadline = time.monotonic() + _READY_S
    while not all(worker.awaited for worker in gateway.workers):
        if time.monotonic() > deadline:
            raise RuntimeError("the gateway's workers do not get ready")
        time.sleep(0.02)
    while str(FAR_IPV4) not in _dig(guest, resolver):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{NAME} is not resolved for {words}")
    return Contender(words, guest, stage.far, gateway.pids, resolver)


def _dig(guest: Namespace, resolver: str) -> str:
    command = ["dig", "+short", "+time=1", "+tries=1", f"@{resolver}", NAME, "A"]
    return guest.run(command, check=False).stdout


def relay_policy() -> str:
    """By name, and not about more than the benchmark does."""
    ports = f"{IPERF_PORT}+{HELLO.start}-{HELLO.stop - 1}+{ECHO}+{SOURCE}"
    return f"allow@{NAME}:tcp:{ports}"


def slirp4netns_command(guest: Namespace, mtu: int) -> list[str]:
    """What gives a namespace a TAP, and makes connections of the packets that come out of it."""
    options = ["--configure", "--mtu", str(mtu), "--netns-type", "path"]
    return ["slirp4netns", *options, str(guest.path), "tap0"]


def pasta_command(guest: Namespace, mtu: int) -> list[str]:
    """The same by passt's engine for namespaces."""
    command = ["pasta", "--foreground", "--quiet", "--runas", "0", "--config-net", "--ipv4-only"]
    command += ["--mtu", str(mtu), "--tcp-ports", "none", "--udp-ports", "none"]
    return [*command, "--tcp-ns", "none", "--udp-ns", "none", "--netns", str(guest.path)]


#: The user-mode networks that people use, by their names.
USER_MODE = {"slirp4netns": slirp4netns_command, "pasta": pasta_command}


def user_mode(stack: contextlib.ExitStack) -> Iterator[Contender]:
    """Each of them with the MTU of most links, and with about the most that either takes."""
    for name, command in USER_MODE.items():
        for mtu in (1500, 65520):
            stage = stack.enter_context(Stage())
            guest = stage.add_guest()
            pid = stack.enter_context(beside(stage, guest, command(guest, mtu)))
            yield Contender(f"{name}, MTU {mtu}", guest, stage.far, (pid,))


@contextlib.contextmanager
def beside(stage: Stage, guest: Namespace, command: Sequence[str]) -> Iterator[int]:
    """Run in the site what gives the guest its way, until the guest has one."""
    quiet = subprocess.DEVNULL
    process = stage.site.popen(command, stdout=quiet, stderr=quiet)
    try:
        _await(lambda: _has_way(guest), process, command[0])
        yield process.pid
    finally:
        processes.stop(process)


def _has_way(guest: Namespace) -> bool:
    command = ["ip", "-4", "route", "get", str(FAR_IPV4)]
    return guest.run(command, check=False).returncode == 0


@contextlib.contextmanager
def dnsmasq() -> Iterator[Contender]:
    """A guest on a hand-made veth, and dnsmasq at the site's end of it."""
    with Stage() as stage, upstream(stage.far):
        side = plain_side(stage)
        command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts"]
        command += ["--no-resolv", f"--server={FAR_IPV4}", "--listen-address=172.16.0.1"]
        # Neither its cache (150 names) nor its patience (150 questions) is to be the measure.
        command += [
            "--bind-interfaces",
            "--cache-size=8192",
            "--dns-forward-max=1000",
            "--pid-file",
        ]
        process = stage.site.popen([*command, "--user=root"])
        try:
            _await(lambda: str(FAR_IPV4) in _dig(side.guest, "172.16.0.1"), process, "dnsmasq")
            yield Contender("dnsmasq", side.guest, side.far, (process.pid,), "172.16.0.1")
        finally:
            processes.stop(process)


@contextlib.contextmanager
def upstream(far: Namespace) -> Iterator[None]:
    """A resolver at the far end that knows every name: it is there, or at its zone's address."""
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts"]
    command += ["--no-resolv", f"--address=/#/{FAR_IPV4}", "--local-ttl=3600", "--cache-size=0"]
    command += [f"--address=/z{i}.{SUFFIX}/{ZONES_AT + i}" for i in range(ZONES)]
    command += [f"--listen-address={FAR_IPV4}", "--bind-interfaces", "--pid-file", "--user=root"]
    process = far.popen(command)
    try:
        _await(lambda: str(FAR_IPV4) in _dig(far, str(FAR_IPV4)), process, "dnsmasq")
        yield
    finally:
        processes.stop(process)


def _await(ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{what} does not work here")
        time.sleep(0.02)


def cpu_seconds(pids: Sequence[int]) -> float:
    """What processes have used of the processors (proc(5), utime and stime of their stat)."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")
