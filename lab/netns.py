"""Throwaway network namespaces, what runs in them, and the veth links between them.

A namespace's name carries its owner's pid and start time (`gnlab-PID-START-RANDOM-LABEL`), so that
one left behind by a killed run is recognised as nobody's (`reap_stale`), and one that a parallel
run is using is not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from . import processes

PREFIX = "gnlab"
RUN_NETNS = Path("/run/netns")
#: `ip netns exec` lays the files of /etc/netns/NAME over /etc (ip-netns(8)).
ETC_NETNS = Path("/etc/netns")
#: Seconds a command in a namespace may take unless its caller says otherwise.
COMMAND_TIMEOUT_S = 30.0

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace that exists until `delete()` or the end of its `with` block.

    `nameservers` become the /etc/resolv.conf of what runs inside.
    """

    def __init__(self, label: str, *, nameservers: Sequence[str] = ()) -> None:
        self.label = label
        self.name = f"{_owner_prefix()}{secrets.token_hex(3)}-{label}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._deleted = False
        try:
            _ip("netns", "add", self.name)
            self.ip("link set lo up")
            if nameservers:
                self._write_resolv_conf(nameservers)
        except BaseException:
            self.delete()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    def __repr__(self) -> str:
        return f"<Namespace {self.name}>"

    @property
    def path(self) -> Path:
        """The file that holds the namespace open."""
        return RUN_NETNS / self.name

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = COMMAND_TIMEOUT_S,
        stdin: str = "",
        **kwargs: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; unless `check` is off, a failure is a `CalledProcessError`."""
        result = subprocess.run(
            self.argv(argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **kwargs,
        )
        if check and result.returncode:
            error = subprocess.CalledProcessError(
                result.returncode, list(argv), result.stdout, result.stderr
            )
            error.add_note(f"in {self.label}: {result.stdout}{result.stderr}".rstrip())
            raise error
        return result

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        """Start a command that the namespace ends, by its pid, when it goes."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        process: subprocess.Popen[bytes] = subprocess.Popen(self.argv(argv), **kwargs)
        self._processes.append(process)
        return process

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The same command, inside: `ip netns exec` becomes it, so the pid is the command's."""
        return ["ip", "netns", "exec", self.name, *argv]

    def ip(self, *commands: str) -> None:
        """Run `ip` commands ("link set lo up") in the namespace, all of them in one process."""
        script = "\n".join(commands)
        result = subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )
        if result.returncode:
            raise RuntimeError(f"ip in {self.label}: {result.stderr.strip()}\n{script}")

    def sysctl(self, key: str, value: str | int | None = None) -> str:
        """Read, or set and read back, a sysctl below `net`: `ns.sysctl("ipv4.ip_forward", 1)`."""
        file = Path("/proc/sys/net", *key.split("."))
        with self.enter():
            if value is not None:
                file.write_text(str(value))
            return file.read_text().strip()

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread into the namespace for the length of the block.

        Sockets, netlink and /proc/sys/net follow the thread. /sys does not (it shows the namespace
        in which it was mounted), nor does /proc/net (it is the main thread's).
        """
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            inside = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(inside)
            finally:
                os.close(inside)
            try:
                yield
            finally:
                _setns(before)
        finally:
            os.close(before)

    def delete(self) -> None:
        """End what was started inside and remove the namespace; harmless when repeated."""
        if self._deleted:
            return
        self._deleted = True
        for process in reversed(self._processes):
            processes.stop(process)
        _remove(self.name)

    def _write_resolv_conf(self, nameservers: Iterable[str]) -> None:
        directory = ETC_NETNS / self.name
        directory.mkdir(parents=True)
        lines = (f"nameserver {address}\n" for address in nameservers)
        (directory / "resolv.conf").write_text("".join(lines))


class Lent(Namespace):
    """A namespace that somebody else made and ends, by its path."""

    def __init__(self, path: Path, label: str, *, nameservers: Sequence[str] = ()) -> None:
        self.label = label
        self.name = str(path)
        self._path = path
        self._processes = []
        self._deleted = False
        self._files = tempfile.TemporaryDirectory(prefix="gnlab-lent-")
        self._resolv_conf = Path(self._files.name, "resolv.conf")
        self._resolv_conf.write_text("".join(f"nameserver {each}\n" for each in nameservers))

    @property
    def path(self) -> Path:
        """Where it can be opened while it is lent."""
        return self._path

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The same command, inside, with the resolvers as its own."""
        lay = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        inside = ["nsenter", f"--net={self._path}", "unshare", "--mount"]
        return [*inside, "sh", "-c", lay, str(self._resolv_conf), *argv]

    def delete(self) -> None:
        """End what was started inside."""
        if not self._deleted:
            self._deleted = True
            for process in reversed(self._processes):
                processes.stop(process)
            self._files.cleanup()


def veth(
    left: Namespace, left_name: str, right: Namespace, right_name: str, *, mtu: int | None = None
) -> None:
    """Link two namespaces; both ends come up with one MTU (default: the kernel's 1500).

    The pair is born inside, so it never shows, even for a moment, among the machine's devices.
    """
    size = "" if mtu is None else f"mtu {mtu} "
    left.ip(
        f"link add {left_name} {size}type veth peer name {right_name} {size}netns {right.name}",
        f"link set {left_name} up",
    )
    right.ip(f"link set {right_name} up")


def names() -> set[str]:
    """Every named namespace of the machine, whoever made it."""
    try:
        return {entry.name for entry in RUN_NETNS.iterdir()}
    except FileNotFoundError:
        return set()


def owner_alive(name: str) -> bool | None:
    """Whether the process that made a namespace still runs; `None`: no lab made it."""
    parts = name.split("-")
    if len(parts) < 5 or parts[0] != PREFIX or not (parts[1] + parts[2]).isdecimal():
        return None
    return processes.start_time(int(parts[1])) == int(parts[2])


def reap_stale() -> list[str]:
    """Remove the namespaces of lab runs that were killed, and what still runs in them.

    A process is ended only if it stands in such a namespace: nothing but that run put it there.
    """
    stale = sorted(name for name in names() if owner_alive(name) is False)
    for name in stale:
        listing = subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
        )
        for pid in listing.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _remove(name)
    return stale


def _owner_prefix() -> str:
    return f"{PREFIX}-{os.getpid()}-{processes.start_time(os.getpid())}-"


def _remove(name: str) -> None:
    if name in names():
        _ip("netns", "delete", name)
    shutil.rmtree(ETC_NETNS / name, ignore_errors=True)


def _ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {result.stderr.strip()}")


def _setns(descriptor: int) -> None:
    """Python has os.setns only from 3.12 on."""
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
