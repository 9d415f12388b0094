"""What keeps guests from working on a machine, and what to do about each thing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import GuestnetError, HostError
from ..gateway.supervisor import Gateway
from ..kernel.interface import Site
from ..kernel.netns import may_administer_own
from ..kernel.rootless import obstacles
from ..kernel.rootless.remote import RootlessSite
from ..model import Finding
from ..ruleset.base import FINGERPRINT
from .ledger import Ledger

#: Kernel: the oldest release that guestnet is made for.
MIN_KERNEL = (5, 15)
_TUN = Path("/dev/net/tun")
_Check = Callable[[Site, Ledger], Iterator[Finding]]
#: Flows of one guest that a table should have room for, before it is called small.
_CONNTRACK_SMALL = 16384
#: Ends of the gateway that are no accident any more, of those of the last ten minutes.
_CRASHES_OFTEN = 3


def examine(site: Site, ledger: Ledger, gateway: Gateway | None) -> list[Finding]:
    """All findings, in the order in which problems build on each other."""
    found = [*_kernel(), *_rootless()] if site.is_apart else machine_findings(rootless=False)
    for check in (_ruleset, _foreign, _forwarding, _bridge_filter, _conntrack, _egress, _overlaps):
        found += _guarded(check, site, ledger)
    return [*found, *_gateway(gateway)]


def machine_findings(*, rootless: bool) -> list[Finding]:
    """Findings that need no open host: kernel, privileges, devices and libraries."""
    if rootless:
        return [*_kernel(), *_rootless(), *_rootless_start()]
    return [*_kernel(), *_root(), *_tun(), *_legacy_iptables()]


def _rootless() -> Iterator[Finding]:
    """What an ordinary user needs of the machine: only without namespaces nothing works."""
    yield _ok("privileges", f"user id {os.geteuid()}: guests live in namespaces of this user's own")
    checks = (
        ("user namespaces", obstacles.user_namespaces(), "may be made", _error),
        ("tun", obstacles.tun(), "/dev/net/tun opens", _warning),
        ("ping", obstacles.ping(), "echo requests can be relayed", _warning),
        ("settings", obstacles.settings(), "can be made in a namespace", _warning),
    )
    for check, found, fine, say in checks:
        for obstacle in found:
            yield say(check, obstacle.detail, obstacle.remedy)
        if not found:
            yield _ok(check, fine)


def _rootless_start() -> Iterator[Finding]:
    """The settings cannot tell everything (seccomp, say), so it is tried."""
    try:
        RootlessSite().close()
    except HostError as error:
        yield _error("rootless site", str(error), "see the error")
    else:
        yield _ok("rootless site", "namespaces were made, and are gone again")


def _guarded(check: _Check, site: Site, ledger: Ledger) -> list[Finding]:
    """A check that fails is a finding of its own."""
    try:
        return list(check(site, ledger))
    except GuestnetError as error:
        name = check.__name__.strip("_").replace("_", " ")
        return [_error(name, str(error), "see the error")]


def _ok(check: str, detail: str) -> Finding:
    return Finding(check=check, status="ok", detail=detail)


def _warning(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check=check, status="warning", detail=detail, remedy=remedy)


def _error(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check=check, status="error", detail=detail, remedy=remedy)


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < MIN_KERNEL:
        yield _error("kernel", f"Linux {release}", "guestnet needs Linux 5.15 or later")
    else:
        yield _ok("kernel", f"Linux {release}")


def _root() -> Iterator[Finding]:
    if os.geteuid() != 0:
        who = f"user id {os.geteuid()}"
        yield _error(
            "privileges", who, "run the daemon as root (CAP_NET_ADMIN), or without it: --rootless"
        )
    elif not may_administer_own():
        yield _error(
            "privileges",
            "root, but without CAP_NET_ADMIN over this network namespace, as in a container",
            "give the container the capability (docker: --cap-add NET_ADMIN), or: --rootless",
        )
    else:
        yield _ok("privileges", "root")


def _tun() -> Iterator[Finding]:
    found = obstacles.tun()
    for obstacle in found:
        yield _error("tun", obstacle.detail, obstacle.remedy)
    if not found:
        yield _ok("tun", f"{_TUN} opens")


def _legacy_iptables() -> Iterator[Finding]:
    for path in ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"):
        try:
            tables = Path(path).read_text().split()
        except OSError:
            continue
        if "filter" in tables:
            yield _warning(
                "legacy iptables",
                f"{path} lists {', '.join(tables)}; guestnet cannot see or amend those rules",
                "switch to iptables-nft, or accept the devices gn+ in its FORWARD chain",
            )


def _ruleset(site: Site, ledger: Ledger) -> Iterator[Finding]:
    if not ledger.networks:
        yield _ok("ruleset", "no networks, so no tables")
    elif FINGERPRINT in site.chains():
        yield _ok("ruleset", "the tables stand as this release writes them")
    else:
        yield _error(
            "ruleset",
            "our tables are missing or another release's: guests are cut off or unfiltered",
            "run guestnet gc to put them back; find out who flushed them",
        )


def _foreign(site: Site, ledger: Ledger) -> Iterator[Finding]:
    chains = site.foreign.find()
    wanted = 2 * len(ledger.foreign_patterns())
    for chain in chains:
        if len(chain.ours) >= wanted:
            yield _ok("foreign filter", f"{chain} drops by default; our accepts stand in it")
        else:
            yield _warning(
                "foreign filter",
                f"{chain} drops what it does not know, guests' traffic included",
                "run guestnet gc; if this stays, its tool locks the table: allow gn* there",
            )
    if not chains:
        yield _ok("foreign filter", "no other tool drops forwarded traffic")


def _forwarding(site: Site, ledger: Ledger) -> Iterator[Finding]:
    if not ledger.networks:
        return
    switches = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    off = [key for key in switches if site.sysctls.read(key) == "0"]
    versions = {pool.version for n in ledger.networks.values() for pool in n.pools}
    off = [key for key in off if (4 if key.startswith("ipv4") else 6) in versions]
    if off and site.is_apart:
        return  # told as the obstacle that it is
    if off:
        yield _error("forwarding", f"off: {', '.join(off)}", "run guestnet gc to turn it on again")
    else:
        yield _ok("forwarding", "on")


def _bridge_filter(site: Site, ledger: Ledger) -> Iterator[Finding]:
    del ledger
    if site.sysctls.read("bridge/bridge-nf-call-iptables") == "1":
        yield _warning(
            "bridge filter",
            "bridge-nf-call-iptables is on: bridged frames meet IP firewalls too",
            "guestnet allows for it; other firewalls may drop frames of un-isolated bridges",
        )


def _conntrack(site: Site, ledger: Ledger) -> Iterator[Finding]:
    del ledger
    text = site.sysctls.read("netfilter/nf_conntrack_max") or site.sysctls.read("nf_conntrack_max")
    if text is None:
        yield _warning("conntrack", "not loaded yet", "it loads with the first network")
    elif int(text) < _CONNTRACK_SMALL:
        yield _warning(
            "conntrack",
            f"room for {text} flows only",
            "raise net.netfilter.nf_conntrack_max: a full table refuses every new flow",
        )
    else:
        yield _ok("conntrack", f"room for {text} flows")


def _egress(site: Site, ledger: Ledger) -> Iterator[Finding]:
    for name, network in sorted(ledger.networks.items()):
        missing = [device for device in network.egress if site.outlook.mtu(device) is None]
        if missing:
            yield _error(
                "egress",
                f"network {name}: no interface {', '.join(missing)}",
                "bring it back, or make the network anew with egress=auto",
            )
        elif not network.egress:
            yield _warning(
                "egress",
                f"network {name}: the host has no default route",
                "guests reach nothing outside until it has one",
            )
        else:
            yield _ok("egress", f"network {name} leaves by {', '.join(network.egress)}")


def _overlaps(site: Site, ledger: Ledger) -> Iterator[Finding]:
    used = site.outlook.surroundings().used
    for each in ledger.attachments():
        for address in each.addresses:
            for network, reason in used:
                if address.version == network.version and address in network:
                    yield _warning(
                        "overlap",
                        f"guest {each.guest!r} has {address}, but the host has {reason}",
                        "detach and attach it: it then gets an address outside of that",
                    )


def _gateway(gateway: Gateway | None) -> Iterator[Finding]:
    if gateway is None:
        return  # no guest needs one
    often = gateway.recent_crashes
    if often < _CRASHES_OFTEN:
        pids = ", ".join(map(str, gateway.pids))
        yield _ok("gateway", f"runs as pid {pids}" if pids else "is being started")
        return
    state = "it runs again" if gateway.pids else "it does not run: what needs a name is refused"
    yield _error(
        "gateway",
        f"ended {often} times in the last 10 minutes; {state}",
        "each time cuts what it relays; the daemon's log says why it ended, please report that",
    )
