"""A policy of many rules, of which a flow of the benchmark meets the last."""

from __future__ import annotations

from collections.abc import Iterator

from .connections import PORTS

#: Of the policy that the issue asks for.
RULES = 100
IPERF_PORT = 5201

#: By group and by service, as an owner writes them before and after lists of networks.
_HOUSE = (
    "allow@dns",
    "deny@metadata",
    "allow@host:tcp:8080",
    "allow@guests:tcp:9000-9100",
    "allow@private:tcp:22+5432+6379",
    "deny@private",
    "deny@public:tcp:25+465+587",
    "allow@public:udp:123+443",
    "allow@public:icmpv4+icmpv6",
)
_LAST = f"allow@public:tcp:{IPERF_PORT}+{PORTS.start}-{PORTS.stop - 1}"


def long_policy(rules: int = RULES, variant: int = 0) -> str:
    """The text of a policy; another `variant` is another policy of the same length."""
    before = [*_HOUSE, *_networks(max(rules - len(_HOUSE) - 1, 0), variant)]
    return ",".join([*before[: rules - 1], _LAST])


def _networks(count: int, variant: int) -> Iterator[str]:
    """Allow and deny lists of somebody's networks, none of them the benchmark's server's."""
    for i in range(count):
        number = f"{i // 250}.{i % 250}"
        match i % 10:
            case 0:
                yield f"allow@[2a00:{variant + 1:x}:{i:x}::/48]:tcp:443"
            case 1 | 4 | 7:
                yield f"deny@20.{number}.0/24"
            case 2 | 5 | 8:
                yield f"allow@52.{number}.0/24:tcp:443+8443"
            case _:
                yield f"allow@34.{number}.{variant % 16 * 16}/28:tcp+udp:443"
