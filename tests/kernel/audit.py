"""What stands in a namespace, seen without guestnet, and what of it should not."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from guestnet.host import Host
from guestnet.host.policies import UNUSED_POLICIES_KEPT
from guestnet.policy import parse_policy
from guestnet.ruleset.chains import policy_id
from guestnet.ruleset.names import GROUP_BRIDGE, GROUP_PORT, GROUP_RETIRED, GROUP_ROUTED
from lab.netns import Namespace

OUR_GROUPS = {f"{group}" for group in (GROUP_ROUTED, GROUP_PORT, GROUP_BRIDGE, GROUP_RETIRED)}


def complaints(host: Host, site: Namespace) -> list[str]:
    """Where store, kernel and `host` do not agree, in words; an open host with nothing pending."""
    return [*_reconciled(host), *_doubles(host), *_devices(host, site), *_rules(host, site),
            *_rows(host)]  # fmt: skip


def _reconciled(host: Host) -> list[str]:
    return [f"there was something to repair: {step}" for step in host.reconcile().steps]


def _doubles(host: Host) -> list[str]:
    held: Counter[object] = Counter()
    for each in host.attachments():
        held.update((each.tap, (each.network, each.mac)))
        held.update(each.addresses)
    return [f"{what} is held {count} times" for what, count in held.items() if count > 1]


def devices(site: Namespace) -> set[str]:
    """Devices of guestnet's groups, or with its prefix."""
    shown: list[dict[str, Any]] = json.loads(site.run(["ip", "-j", "link"]).stdout)
    return {
        each["ifname"]
        for each in shown
        if each.get("group") in OUR_GROUPS or each["ifname"].startswith("gn")
    }


def _devices(host: Host, site: Namespace) -> list[str]:
    wanted = {each.tap for each in host.attachments()}
    wanted |= {network.spec.bridge for network in host.networks() if network.spec.bridge}
    return _differences("device", devices(site), wanted)


def ruleset(site: Namespace) -> list[dict[str, Any]]:
    """Everything nft lists, as (kind, value) pairs in one dictionary each."""
    listed: list[dict[str, Any]] = json.loads(
        site.run(["nft", "-j", "list", "ruleset"]).stdout or '{"nftables": []}'
    )["nftables"]
    return listed


def set_sizes(site: Namespace) -> dict[str, int]:
    """Elements of each set of ours."""
    return {
        f"{entry['set']['family']} {entry['set']['name']}": len(entry["set"].get("elem", ()))
        for entry in ruleset(site)
        if entry.get("set", {}).get("table") == "guestnet"
    }


def _rules(host: Host, site: Namespace) -> list[str]:
    listed = ruleset(site)
    attachments = host.attachments()
    if not host.networks():
        ours = [entry for entry in listed if "guestnet" in json.dumps(entry)]
        return [f"without a network there stands {entry}" for entry in ours[:3]]
    found: list[str] = []
    used = {policy_id(parse_policy(each.policy)) for each in attachments}
    chains = {entry["chain"]["name"] for entry in listed if "chain" in entry}
    standing = {"-".join(name.split("-")[:2]) for name in chains if name.startswith("policy-")}
    # Unused ones let nothing pass, and are deleted many at a time.
    found += [f"policy {name} is missing" for name in sorted(used - standing)]
    if len(standing - used) > UNUSED_POLICIES_KEPT:
        found.append(f"{len(standing - used)} unused policies stand")
    live: dict[str, set[str]] = {"live4": set(), "live6": set(), "members": set()}
    for entry in listed:
        name = entry.get("set", {}).get("name", "")
        word = "members" if "-members" in name else name
        if word in live:
            # A live guest's element is its address twice.
            live[word] |= {
                element["concat"][0] if isinstance(element, dict) else element
                for element in entry["set"].get("elem", ())
            }
        if word == "members" and "-".join(name.split("-")[:2]) not in standing:
            found.append(f"set {name} is of no policy that stands")
    own = {
        f"live{version}": {str(i.ip) for i in interfaces if i is not None}
        for version, interfaces in (
            (4, [each.ipv4 for each in attachments]),
            (6, [each.ipv6 for each in attachments]),
        )
    }
    found += _differences("live4", live["live4"], own["live4"])
    found += _differences("live6", live["live6"], own["live6"])
    found += _differences("member", live["members"], own["live4"] | own["live6"])
    identities = sum(n for name, n in set_sizes(site).items() if name.endswith("identity4"))
    expected = sum(1 + (each.topology == "routed") for each in attachments if each.ipv4)
    if identities != expected:
        found.append(f"{identities} elements of identity4, {expected} expected")
    return found


def _rows(host: Host) -> list[str]:
    # By the host's own connection: a second one in this process would disturb SQLite's locks.
    leases = host._state.store.leases()
    found = [
        f"lease of {each.guest!r} is {each.state}"
        for each in leases
        if each.state not in ("attached", "released")
    ]
    found += [
        f"released {each.guest!r} has an attachment"
        for each in leases
        if each.state == "released" and each.attachment is not None
    ]
    attached = {each.guest for each in leases if each.state == "attached"}
    return found + _differences("lease", attached, {each.guest for each in host.attachments()})


def _differences(what: str, found: set[Any], wanted: set[Any]) -> list[str]:
    return [f"{what} {each} stands and should not" for each in sorted(found - wanted)] + [
        f"{what} {each} is missing" for each in sorted(wanted - found)
    ]
