"""The demo: an internet in a namespace, guestnet on its edge, a real VM behind guestnet.

Every line of its table is tried from inside the VM and asked of `guestnet policy explain`; the two
have to agree, or the demo fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from typing import Any

from .addresses import ALLOWED, FORBIDDEN, METADATA, PRIVATE, SITE_IPV4, SITE_IPV6
from .leaks import why_no_guest
from .netns import Namespace
from .qemu import Guest, Result, address_args
from .world import World

GUESTNET = Path(sys.executable).with_name("guestnet")
POLICY = f"deny@{FORBIDDEN.ipv4},deny@[{FORBIDDEN.ipv6}],allow@public"

Address = IPv4Address | IPv6Address
#: How busybox's `timeout` reports a command that it had to end.
TIMED_OUT = (124, 143)


@dataclass(frozen=True)
class Trial:
    """One thing the VM tries: a page, an echo request."""

    what: str
    protocol: str
    address: Address
    port: int | None = None

    @property
    def command(self) -> str:
        """What busybox is told to run."""
        if self.port is None:
            return f"ping -c 1 -W 1 {self.address}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"timeout 3 wget -q -O /dev/null http://{host}:{self.port}/"

    @property
    def flow(self) -> str:
        """The flow as people write it."""
        if self.port is None:
            return f"{self.protocol} {self.address}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.protocol} {host}:{self.port}"


class Shell:
    """Runs guestnet's own command line in the site, and shows what it runs."""

    def __init__(self, site: Namespace, directory: Path) -> None:
        self._site = site
        self._where = [f"--state-dir={directory / 'state'}", f"--run-dir={directory / 'run'}"]

    def __call__(self, *words: str, quiet: bool = False, check: bool = True) -> str:
        """The output of `guestnet WORDS`."""
        if not quiet:
            print(f"$ guestnet {' '.join(_quoted(word) for word in words)}", flush=True)
        done = self._site.run([str(GUESTNET), *self._where, *words], check=False, timeout_s=60)
        if check and done.returncode:
            raise SystemExit(f"guestnet {words[0]} failed ({done.returncode}): {done.stderr}")
        if not quiet and done.stdout:
            print(_indented(done.stdout), flush=True)
        return done.stdout

    def data(self, *words: str, check: bool = True) -> Any:
        """The parsed `--json` output of a command, unseen."""
        return json.loads(self(*words, "--json", quiet=True, check=check))


def _quoted(word: str) -> str:
    return word if word.replace("-", "").replace("_", "").isalnum() else f"'{word}'"


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.rstrip().splitlines())


@contextmanager
def guestnet(site: Namespace) -> Iterator[Shell]:
    """A running daemon in the site, stopped and cleared away at the end."""
    with tempfile.TemporaryDirectory(prefix="gnlab-demo-") as directory:
        shell = Shell(site, Path(directory))
        shell("up")
        try:
            yield shell
        finally:
            shell("down", quiet=True, check=False)


def trials(attachment: dict[str, Any]) -> list[Trial]:
    """What the VM tries, the wanted first."""
    found = []
    for server, what in (
        (ALLOWED, "a public server"),
        (FORBIDDEN, "a server the policy denies"),
        (PRIVATE, "somebody's private network"),
        (METADATA, "cloud metadata"),
    ):
        found += [Trial(what, "tcp", address, 80) for address in server.addresses]
    found.append(Trial("a public server", "icmpv4", ALLOWED.addresses[0]))
    found.append(Trial("a public server", "icmpv6", ALLOWED.addresses[1]))
    found.append(Trial("the host", "tcp", SITE_IPV4.ip, 22))
    found.append(Trial("the host", "icmpv6", SITE_IPV6.ip))
    found.append(Trial("another guest", "tcp", ip_interface(attachment["ipv4"]).ip, 80))
    found.append(Trial("another guest", "icmpv6", ip_interface(attachment["ipv6"]).ip))
    return found


def succeeded(result: Result, trial: Trial) -> bool:
    """Whether the VM reached it; a client that crashed has neither reached it nor been refused."""
    if result.status not in (0, 1, *TIMED_OUT):
        raise SystemExit(f"demo: `{trial.command}` ended with {result.status}: {result.output}")
    return result.ok


def tried(vm: Guest, shell: Shell, attempts: list[Trial]) -> int:
    """Try everything and print the table; returns how often kernel and explanation disagreed."""
    wrong = 0
    print(f"\n  {'from the VM':27} {'flow':36} {'result':9} {'':8} decided by")
    for trial in attempts:
        began = time.monotonic()
        reached = succeeded(vm.run(trial.command, timeout_s=8), trial)
        took_ms = (time.monotonic() - began) * 1000
        target = trial.flow.split(" ", 1)[1]
        verdict = shell.data("policy", "explain", "vm-1", trial.protocol, target, check=False)
        agrees = reached == (verdict["action"] == "allow")
        wrong += not agrees
        result = "reached" if reached else "refused"
        note = "" if agrees else "  <- DISAGREES with the kernel"
        row = f"{trial.what:27} {trial.flow:36} {result:9} {took_ms:5.0f} ms"
        print(f"  {row} {verdict['text']}{note}", flush=True)
    return wrong


def main() -> int:
    """Run the demo; 0 if everything went as explained."""
    reason = why_no_guest()
    if reason:
        raise SystemExit(f"demo: {reason}")
    began = time.monotonic()
    with World() as world, guestnet(world.site) as shell:
        print("  an internet of seven servers stands in a namespace; guestnet runs on its edge\n")
        shell("attach", "vm-1", "--policy", POLICY)
        attachment = shell.data("show", "vm-1")
        other = shell.data("attach", "vm-2", "--policy", "public")
        print("$ qemu-system-x86_64 … $(guestnet show vm-1 --format qemu)", flush=True)
        arguments = shell("show", "vm-1", "--format", "qemu", quiet=True).split()
        kernel = shell("show", "vm-1", "--format", "kernel-args", quiet=True).strip()
        ipv6 = address_args(
            ipv6=ip_interface(attachment["ipv6"]),  # type: ignore[arg-type]
            gateway_ipv6=IPv6Address(attachment["gateway_ipv6"]),
            mtu=attachment["mtu"],
        )
        with Guest(world.site, arguments, f"{kernel} {ipv6}") as vm:
            print(f"  booted Linux in {vm.boot_s:.1f} s", flush=True)
            wrong = tried(vm, shell, trials(other))
        print()
        shell("ls")
        shell("detach", "vm-1", "vm-2")
        shell("network", "rm", "default")
    print(f"\ndemo: done in {time.monotonic() - began:.0f} s, nothing left behind")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.SubprocessError as error:
        sys.exit(f"demo: {error}")
