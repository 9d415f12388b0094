"""Netlink: the codec, and what is told of a refusal by a real kernel."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.errors import HostError
from guestnet.kernel import netlink as nl
from guestnet.kernel.link import delete_link, link, links, new_bridge, set_link
from guestnet.kernel.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Message,
    NetlinkSocket,
    attribute,
    attribute_list,
    attributes,
    nested,
)
from guestnet.kernel.nft import Nft
from guestnet.policy import parse_policy
from guestnet.ruleset.base import base_text
from guestnet.ruleset.compile import compile_policy
from guestnet.ruleset.elements import Element, pin_element
from guestnet.ruleset.names import Family
from lab.netns import Namespace

GOLDEN = Path(__file__).parents[1] / "pure" / "golden"

# --- the codec ------------------------------------------------------------------------------------

listed = st.lists(st.tuples(st.integers(1, nl.NLA_TYPE_MASK), st.binary(max_size=40)), max_size=8)


@given(listed)
def test_attributes_come_back(given_: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in given_)
    assert len(data) % 4 == 0
    assert list(attribute_list(data)) == given_
    assert attributes(data) == dict(given_)


@given(listed, st.integers(1, 100))
def test_nested_attributes_come_back(given_: list[tuple[int, bytes]], kind: int) -> None:
    data = nested(kind, *(attribute(k, payload) for k, payload in given_))
    ((found, payload),) = attribute_list(data)
    assert found == kind  # without the flag
    assert list(attribute_list(payload)) == given_


@given(st.lists(st.tuples(st.integers(1, 99), st.binary(min_size=1, max_size=20)), min_size=1),
       st.data())  # fmt: skip
def test_what_is_cut_short_is_refused_or_loses_whole_attributes_only(
    given_: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    packed = b"".join(attribute(kind, payload) for kind, payload in given_)
    cut = packed[: data.draw(st.integers(0, len(packed)))]
    try:
        found = list(attribute_list(cut))
    except ValueError:
        return
    assert found == given_[: len(found)]


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused_with_value_error(data: bytes) -> None:
    try:
        found = list(attribute_list(data))
    except ValueError:
        return
    assert sum(4 + len(payload) for _kind, payload in found) <= len(data)


@pytest.mark.parametrize("length", [0, 1, 3, 9, 65535])
def test_lengths_that_lie(length: int) -> None:
    with pytest.raises(ValueError, match=f"netlink attribute of {length} bytes at 0 of 8"):
        attributes(struct.pack("=HHI", length, 1, 7))


def test_numbers_and_text() -> None:
    assert nl.u8(1, 5) == bytes.fromhex("0500010005000000")
    assert nl.u32(2, 1)[4:] == struct.pack("=I", 1)
    assert nl.be32(2, 1)[4:] == b"\0\0\0\1"
    assert nl.zero_terminated(attributes(nl.text(3, "gn1-0"))[3]) == "gn1-0"


# --- a real kernel --------------------------------------------------------------------------------


@pytest.fixture
def route(namespace: Namespace) -> Iterator[NetlinkSocket]:
    with namespace.enter(), NetlinkSocket(NETLINK_ROUTE) as made:
        yield made


def bridge(name: str) -> Message:
    return new_bridge(name, "02:00:00:00:00:01", 1500, 0)


def names(route: NetlinkSocket) -> set[str]:
    return {each.name for each in links(route)} - {"lo"}


@pytest.mark.root
class TestRefusals:
    def test_a_refusal_says_call_target_errno_and_the_kernels_words(
        self, route: NetlinkSocket
    ) -> None:
        message = set_link("lo", mtu=1 << 30)
        route.request([bridge("b0")])
        with pytest.raises(HostError) as refused:
            route.request([set_link("b0", mtu=1 << 30)])
        assert (refused.value.call, refused.value.target) == (message.call, "b0")
        assert refused.value.errno == errno.EINVAL
        assert refused.value.detail == "mtu greater than device maximum"

    def test_a_refused_message_in_the_middle_is_the_one_that_is_reported(
        self, route: NetlinkSocket
    ) -> None:
        with pytest.raises(HostError) as refused:
            route.request([bridge("b0"), set_link("nobody", up=True), bridge("b1")])
        assert (refused.value.target, refused.value.errno) == ("nobody", errno.ENODEV)
        assert names(route) == {"b0", "b1"}  # rtnetlink goes on; the caller undoes

    def test_of_two_refusals_the_first_is_reported(self, route: NetlinkSocket) -> None:
        with pytest.raises(HostError) as refused:
            route.request([set_link("one", up=True), bridge("b0"), set_link("two", up=True)])
        assert refused.value.target == "one"

    def test_what_is_tolerated_is_no_refusal(self, route: NetlinkSocket) -> None:
        route.request([delete_link("nobody"), bridge("b0"), delete_link("nobody")])
        assert names(route) == {"b0"}

    def test_the_socket_is_usable_after_a_refusal(self, route: NetlinkSocket) -> None:
        for number in range(50):
            with pytest.raises(HostError):
                route.request([bridge(f"b{number}"), set_link("nobody", up=True), bridge("lo")])
            assert link(route, f"b{number}") is not None
        assert len(names(route)) == 50

    def test_nothing_asked_is_nothing_done(self, route: NetlinkSocket) -> None:
        route.request([])
        assert link(route, "nobody") is None

    def test_a_thousand_messages_in_one_call(self, route: NetlinkSocket) -> None:
        route.request([bridge("b0")])
        messages = [set_link("b0", mtu=1280 + number % 2) for number in range(1000)]
        with pytest.raises(HostError) as refused:
            route.request([*messages[:700], set_link("nobody", up=True), *messages[700:]])
        assert refused.value.target == "nobody"
        found = link(route, "b0")
        assert found is not None
        assert found.mtu == 1281


@pytest.mark.root
class TestHangs:
    """An answer that never comes is an error in time, not a hang."""

    @pytest.fixture
    def deaf(self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> NetlinkSocket:
        monkeypatch.setattr(nl, "_ANSWER_TIMEOUT_S", 1)
        with namespace.enter():
            return NetlinkSocket(NETLINK_ROUTE)

    def test_a_kernel_that_does_not_answer(self, deaf: NetlinkSocket) -> None:
        # A message type of 0xF (below RTM_BASE) is a control message, which nobody answers.
        begun = time.monotonic()
        with pytest.raises(HostError) as refused, deaf:
            deaf.ask(Message(nl.NLMSG_NOOP, 0, bytes(4), "NOOP", "nobody"))
        assert time.monotonic() - begun < 5
        assert refused.value.errno == errno.EAGAIN
        assert str(refused.value).startswith("NOOP nobody")

    def test_no_descriptor_is_left_by_a_socket_that_could_not_be_made(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(HostError, match=r"socket\(AF_NETLINK\) 99"):
            NetlinkSocket(99)
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
class TestNft:
    @pytest.fixture
    def nft(self, namespace: Namespace) -> Iterator[Nft]:
        with namespace.enter():
            made = Nft()
            made.run(base_text(), about="base")
            yield made
            made.close()

    @pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.policy")), ids=lambda f: f.stem)
    def test_the_kernel_takes_every_golden_policy(self, nft: Nft, file: Path) -> None:
        chains = compile_policy(parse_policy(file.read_text()))
        nft.run(chains.install_text(), about=file.stem)
        assert {name for name, _rules in chains.chains} <= nft.chains()

    def test_the_kernel_takes_the_golden_places(self, nft: Nft) -> None:
        nft.run((GOLDEN / "places.nft").read_text(), about="places")

    def test_the_base_can_be_installed_over_itself(self, nft: Nft) -> None:
        for _ in range(3):
            nft.run(base_text(), about="base")

    def live(self, *numbers: int) -> list[Element]:
        keys = [bytes([10, 0, number >> 8, number & 255]) for number in numbers]
        return [Element(Family.INET, "live4", key * 2) for key in keys]

    def test_elements_come_back_as_they_were_added(self, nft: Nft) -> None:
        nft.change(add=self.live(1, 2, 3))
        assert set(nft.elements(Family.INET, "live4")) == set(self.live(1, 2, 3))

    def test_a_change_may_be_repeated(self, nft: Nft) -> None:
        for _ in range(2):
            nft.change(add=self.live(1, 2))
        for _ in range(2):
            nft.change(remove=self.live(1, 7))
        assert list(nft.elements(Family.INET, "live4")) == self.live(2)

    def test_ten_thousand_elements_in_one_call(self, nft: Nft) -> None:
        nft.change(add=self.live(*range(10_000)))
        assert len(set(nft.elements(Family.INET, "live4"))) == 10_000
        nft.change(remove=self.live(*range(5_000)))
        assert set(nft.elements(Family.INET, "live4")) == set(self.live(*range(5_000, 10_000)))

    def test_a_transaction_is_done_whole_or_not_at_all(self, nft: Nft) -> None:
        wrong = Element(Family.INET, "live4", b"too long to be an address")
        with pytest.raises(HostError) as refused:
            nft.change(add=[*self.live(1, 2), wrong])
        assert refused.value.call == "nft add element"
        assert refused.value.target == "inet guestnet live4"
        assert refused.value.errno == errno.EINVAL
        assert list(nft.elements(Family.INET, "live4")) == []

    def test_a_set_that_is_not_there_is_empty_to_readers_and_an_error_to_writers(
        self, nft: Nft
    ) -> None:
        element = Element(Family.INET, "nobody", bytes(4))
        assert list(nft.elements(Family.INET, "nobody")) == []
        with pytest.raises(HostError) as refused:
            nft.change(add=[element])
        assert refused.value.errno == errno.ENOENT

    def pins(self, nft: Nft, *numbers: int) -> list[Element]:
        chains = compile_policy(parse_policy("allow@name.test:udp:7"))
        nft.run(chains.install_text(), about="a policy with pins")
        guest = IPv4Address("10.0.0.2")
        return [pin_element(chains.id, 0, guest, IPv4Address(n)) for n in numbers]

    def lifetimes(self, nft: Nft, pin: Element) -> dict[str, int]:
        """Seconds that the elements of a set were given, by the address behind the guest's."""
        told = nft.read(f"list set inet guestnet {pin.set_name}", about="pins")
        (found,) = (each["set"] for each in json.loads(told)["nftables"] if "set" in each)
        elements = [each["elem"] for each in found.get("elem", [])]
        return {each["val"]["concat"][1]: each["timeout"] for each in elements}

    def test_a_pin_gets_its_new_lifetime_whether_longer_or_shorter(self, nft: Nft) -> None:
        one, two, three = self.pins(nft, 0x01000001, 0x01000002, 0x01000003)
        nft.renew({one: 100, two: 200})
        assert self.lifetimes(nft, one) == {"1.0.0.1": 100, "1.0.0.2": 200}
        nft.renew({one: 500, two: 50, three: 7})
        assert self.lifetimes(nft, one) == {"1.0.0.1": 500, "1.0.0.2": 50, "1.0.0.3": 7}
        nft.renew({})
        assert len(self.lifetimes(nft, one)) == 3

    def test_thousands_of_pins_in_one_call(self, nft: Nft) -> None:
        pins = self.pins(nft, *range(0x01000000, 0x01000000 + 2500))
        for _ in range(2):
            nft.renew(dict.fromkeys(pins, 100))
        assert set(nft.elements(Family.INET, pins[0].set_name)) == set(pins)

    def test_pins_of_a_set_that_is_not_there_are_refused_with_all_beside_them(
        self, nft: Nft
    ) -> None:
        (pin,) = self.pins(nft, 0x01000001)
        with pytest.raises(HostError) as refused:
            nft.renew({pin: 100, Element(Family.INET, "nobody", pin.key): 100})
        assert refused.value.errno == errno.ENOENT
        assert list(nft.elements(Family.INET, pin.set_name)) == []

    def test_text_that_nft_refuses_is_told_with_its_place(self, nft: Nft) -> None:
        with pytest.raises(HostError) as refused:
            nft.run("add rule inet guestnet nowhere accept", about="the test")
        assert str(refused.value).startswith("nft the test: ")
        assert "No such file or directory" in refused.value.detail

    def test_counters_are_told_by_family_and_name(self, nft: Nft) -> None:
        counters = nft.counters()
        assert {"inet/refused", "inet/spoofed_ipv4", "arp/spoofed_arp"} <= counters.keys()
        assert set(counters.values()) == {0}

    def test_counters_of_others_are_not_ours(self, nft: Nft, namespace: Namespace) -> None:
        namespace.run(["nft", "-f", "-"], stdin="table inet other {\n counter theirs { }\n}\n")
        assert not [name for name in nft.counters() if "theirs" in name]


@pytest.mark.root
def test_a_socket_belongs_to_the_namespace_in_which_it_was_made(namespace: Namespace) -> None:
    with namespace.enter():
        inside = NetlinkSocket(NETLINK_ROUTE)
    with inside:
        inside.request([bridge("b0")])
        assert names(inside) == {"b0"}
    assert "b0" not in {name for _index, name in socket.if_nameindex()}


@pytest.mark.root
def test_two_sockets_in_two_threads_do_not_hear_each_other(namespace: Namespace) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with namespace.enter(), NetlinkSocket(NETLINK_ROUTE) as own:
                for turn in range(20):
                    name = f"b{number}-{turn}"
                    own.request([bridge(name), set_link(name, mtu=1400), delete_link(name)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


@pytest.mark.root
def test_a_netfilter_socket_refuses_what_is_no_batch(namespace: Namespace) -> None:
    with namespace.enter(), NetlinkSocket(NETLINK_NETFILTER) as own:
        alone = Message(10 << 8 | 12, 0, bytes(4), "nft add element", "nobody")
        with pytest.raises(HostError):
            own.request([alone])
