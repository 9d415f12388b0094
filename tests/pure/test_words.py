"""The words of `guestnet run`, and what they ask for together."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestnet.cli.words import Words
from guestnet.errors import ConfigError
from guestnet.frames.transport import Transport
from guestnet.model import Attachment

DIRECTORY = Path("/run/one")


def attachment(transport: str | None = None) -> Attachment:
    return Attachment.model_validate(
        {
            "guest": "guest", "network": "default", "topology": "routed", "generation": 1,
            "slot": 0, "tap": "gn1-0", "mac": "02:6d:73:00:00:02", "mtu": 1400, "dns": [],
            "ipv4": "172.16.0.2/30", "gateway_ipv4": "172.16.0.1", "policy": "none",
            "ipv6": "fd42:6d73:62::2/64", "gateway_ipv6": "fd42:6d73:62::1",
            "transport": transport,
        }
    )  # fmt: skip


def replaced(*command: str) -> list[str]:
    words = Words.read(command)
    return words.replaced(attachment(words.transport(DIRECTORY)))


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("{tap}", None),
        ("{fd}", None),
        ("{mac}", None),
        ("{kernel_args}", None),
        ("{stream}", "stream"),
        ("{stream+vnet}", "stream+vnet"),
        ("{dgram}", "dgram"),
        ("{dgram+vnet}", "dgram+vnet"),
    ],
)
def test_a_vmm_s_words_say_what_it_wants(word: str, kind: str | None) -> None:
    words = Words.read(["vmm", f"net={word},x"])
    assert (words.is_vm, words.socket, words.opens_tap) == (True, kind, word == "{fd}")
    text = words.transport(DIRECTORY)
    assert text == (None if kind is None else str(Transport.parse(f"{kind}:/run/one/net.sock")))


def test_a_program_s_words_are_those_of_any_guest() -> None:
    assert not Words.read(["a", "{ipv4}", "{gateway6}", "{mtu}", "{streams}", "{ stream }"]).is_vm


def test_what_they_stand_for() -> None:
    given = replaced("v", "{stream}", "{mac},{mtu}", "{ipv4}:{gateway}", "{ipv6}:{gateway6}", "{x}")
    assert given == [
        "v", "/run/one/net.sock", "02:6d:73:00:00:02,1400", "172.16.0.2/30:172.16.0.1",
        "fd42:6d73:62::2/64:fd42:6d73:62::1", "{x}",
    ]  # fmt: skip
    assert replaced("{kernel_args}")[0].startswith("ip=172.16.0.2::172.16.0.1:")
    assert replaced("{tap}", "fd={fd}") == ["gn1-0", "fd={fd}"]


@pytest.mark.parametrize("kind", ["dgram", "dgram+vnet"])
def test_datagrams_have_two_ends(kind: str) -> None:
    ends = replaced(f"remote.path={{{kind}}}", "local.path={dgram_local}")
    assert ends == ["remote.path=/run/one/net.sock", "local.path=/run/one/net.sock.vmm"]


@pytest.mark.parametrize(
    "words",
    [
        ("{tap}", "{stream}"),
        ("{fd}", "{dgram+vnet}"),
        ("{tap}", "{fd}", "{stream}"),
        ("{stream}", "{dgram}"),
        ("{stream}", "{stream+vnet}"),
    ],
)
def test_words_that_contradict_each_other_are_named(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="one and the same network") as raised:
        Words.read(["vmm", *reversed(words)])
    assert raised.value.value == " and ".join(words)


@pytest.mark.parametrize("beside", ["{stream}", "{mac}"])
def test_an_end_without_the_other_is_an_error(beside: str) -> None:
    with pytest.raises(ConfigError, match=r"\{dgram_local\}.*\{dgram\}"):
        Words.read(["vmm", "{dgram_local}", beside])
