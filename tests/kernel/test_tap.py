"""The TAP device on a real kernel: making, attaching, refusing, undoing. See docs/tap.md."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from typing import Any

import pytest

from guestnet.errors import ConfigError, ConflictError, HostError, NotFoundError
from guestnet.kernel.tap import FrameDevice, Offload, Tap, attach, ioctl, random_mac
from guestnet.kernel.tap.ioctl import Ioctl
from guestnet.model import check_mac
from tapns import Faults, ip, link, make_persistent, names

pytest_plugins = ("tapns",)
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("tap_netns")]

MAC = "02:6d:73:00:00:01"


# -- what is asked for is what the kernel has --------------------------------------------------


def test_settings_are_applied_and_read_back() -> None:
    with Tap.open("gn0", mac=MAC.upper(), mtu=9000) as tap:
        shown = link("gn0")
        assert (shown["address"], shown["mtu"], shown["ifindex"]) == (MAC, 9000, tap.ifindex)
        assert (tap.name, tap.mac, tap.mtu) == ("gn0", MAC, 9000)
        assert shown["linkinfo"]["info_data"] == {
            "type": "tap",
            "pi": False,
            "vnet_hdr": False,
            "multi_queue": False,
            "persist": False,
            "user": "root",
        }
        assert isinstance(tap, FrameDevice)


def test_without_a_name_the_kernel_chooses_free_ones() -> None:
    with Tap.open() as first, Tap.open() as second:
        assert (first.name, second.name) == ("gntap0", "gntap1")
        assert first.mtu == 1500
        assert check_mac(first.mac) == first.mac


def test_the_device_goes_with_its_owner() -> None:
    tap = Tap.open("gn0")
    assert not tap.closed
    tap.close()
    tap.close()
    assert tap.closed
    assert names() == {"lo"}
    assert (tap.name, repr(tap)) == ("gn0", "<Tap gn0 closed>")
    for use in (tap.recv, tap.fileno, tap.bring_up, tap.has_data, lambda: tap.mtu):
        with pytest.raises(HostError, match="this Tap is closed"):
            use()


def test_a_leaked_tap_warns_and_is_closed() -> None:
    tap = Tap.open("gn0")
    with pytest.warns(ResourceWarning, match="unclosed Tap gn0"):
        del tap
    assert names() == {"lo"}


def test_changes_take_effect_at_once() -> None:
    with Tap.open("gn0") as tap:
        assert not tap.is_up
        tap.bring_up()
        assert tap.is_up
        assert "UP" in link("gn0")["flags"]
        tap.set_mac(MAC)
        tap.set_mtu(1400)
        assert (link("gn0")["address"], link("gn0")["mtu"]) == (MAC, 1400)
        tap.bring_down()
        assert not tap.is_up


def test_a_renamed_interface_is_still_ours() -> None:
    with Tap.open("gn0") as tap:
        ip("link", "set", "gn0", "name", "other0")
        assert tap.name == "other0"
        tap.set_mtu(1400)
        assert link("other0")["mtu"] == 1400


def test_it_stays_under_control_from_another_namespace() -> None:
    with Tap.open("gn0") as tap:

        def elsewhere() -> None:
            libc = __import__("ctypes").CDLL(None)
            assert libc.unshare(0x40000000) == 0
            tap.set_mtu(1300)
            tap.set_ip("10.0.0.1/24")

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert tap.mtu == 1300
        assert link("gn0")["mtu"] == 1300


def addresses(name: str) -> set[str]:
    [shown] = ip("address", "show", "dev", name)
    return {
        f"{entry['local']}/{entry['prefixlen']}"
        for entry in shown["addr_info"]
        if entry["scope"] != "link"
    }


def test_addresses_are_set_and_replaced_but_not_those_of_others() -> None:
    with Tap.open("gn0") as tap:
        tap.bring_up()
        tap.set_ip("10.0.0.1/24")
        tap.set_ip("10.0.0.1/24")
        tap.set_ip("fd00:1::1/64")
        ip("address", "add", "192.168.7.1/24", "dev", "gn0")
        assert addresses("gn0") == {"10.0.0.1/24", "fd00:1::1/64", "192.168.7.1/24"}
        tap.set_ip("10.0.0.1/16")
        tap.set_ip("fd00:1::1/80")
        assert addresses("gn0") == {"10.0.0.1/16", "fd00:1::1/80", "192.168.7.1/24"}
        [shown] = ip("address", "show", "dev", "gn0")
        assert "10.0.255.255" in {entry.get("broadcast") for entry in shown["addr_info"]}


def test_an_ipv6_address_is_usable_at_once() -> None:
    with Tap.open("gn0") as tap:
        tap.bring_up()
        tap.set_ip("fd00:1::1/64")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.bind(("fd00:1::1", 0))  # a tentative address would be refused


def test_a_failed_change_of_address_leaves_the_former_one(faults: Faults) -> None:
    with Tap.open("gn0") as tap:
        tap.set_ip("10.0.0.1/24")
        faults.arm(5, errno.ENOMEM)  # name, ifindex, delete, ifindex, add
        with pytest.raises(HostError, match="RTM_NEWADDR"):
            tap.set_ip("10.0.1.1/24")
        assert addresses("gn0") == {"10.0.0.1/24"}


def test_ipv6_on_a_link_too_small_for_it_says_why() -> None:
    with Tap.open("gn0", mtu=1000) as tap, pytest.raises(HostError, match="MTU of at least 1280"):
        tap.set_ip("fd00::1/64")


@pytest.mark.parametrize("value", ["10.0.0.1", "10.0.0.1/33", "x/24", "224.0.0.1/24", "::/64"])
def test_no_address_for_an_interface(value: str) -> None:
    with Tap.open("gn0") as tap, pytest.raises(ConfigError, match="ip="):
        tap.set_ip(value)


def test_random_macs_are_local_and_unicast() -> None:
    macs = {random_mac() for _ in range(500)}
    assert len(macs) == 500
    assert all(int(mac[:2], 16) & 3 == 2 and check_mac(mac) == mac for mac in macs)


# -- what cannot be is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "sixteen-bytes-xx"),
        ("name", ""),
        ("name", "a/b"),
        ("name", "gn%d"),
        ("name", ".."),
        ("mac", "03:00:00:00:00:01"),
        ("mac", "2:3"),
        ("mtu", 67),
        ("mtu", 65_522),
        ("queues", 0),
        ("queues", 257),
        ("owner", -1),
        ("owner", 2**32 - 1),
        ("existing", "perhaps"),
        ("offload", Offload.CSUM),
    ],
)
def test_wrong_arguments_are_named(key: str, value: Any) -> None:
    keywords = {"name": "gn0", key: value}
    with pytest.raises(ConfigError) as caught:
        Tap.open(**keywords)
    assert caught.value.key == key
    assert names() == {"lo"}


def test_the_longest_name_is_kept_whole() -> None:
    with Tap.open("fifteen-bytes-x") as tap:
        assert tap.name == "fifteen-bytes-x"
        assert "fifteen-bytes-x" in names()


def test_the_extreme_mtus_are_the_kernels() -> None:
    with Tap.open("gn0", mtu=68) as tap:
        tap.set_mtu(65_521)
        assert tap.mtu == 65_521
        with pytest.raises(ConfigError, match="mtu"):
            tap.set_mtu(65_522)


@pytest.mark.parametrize("existing", ["attach", "refuse", "require"])
def test_a_name_of_another_kind_is_a_conflict(existing: Any) -> None:
    ip("link", "add", "br0", "type", "bridge")
    with pytest.raises(ConflictError, match="kind bridge"):
        Tap.open("br0", existing=existing)
    with pytest.raises(ConflictError, match="loopback"):
        Tap.open("lo", existing=existing)
    with pytest.raises(ConflictError, match="kind bridge"):
        Tap.delete("br0")
    assert names() == {"lo", "br0"}


def test_a_tun_device_is_no_tap() -> None:
    ip("tuntap", "add", "dev", "tun7", "mode", "tun")
    with pytest.raises(ConflictError, match="kind tun"):
        Tap.open("tun7")


def test_a_missing_driver_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "TUN_PATH", "/nonexistent/tun")
    with pytest.raises(HostError, match="modprobe tun") as caught:
        Tap.open("gn0")
    assert caught.value.errno == errno.ENOENT


def test_errors_keep_call_target_and_errno(faults: Faults) -> None:
    faults.arm(2, errno.ENFILE)
    with pytest.raises(HostError) as caught:
        Tap.open("gn0")
    assert (caught.value.call, caught.value.target) == ("open", "/dev/net/tun")
    assert caught.value.errno == errno.ENFILE


# -- persistence -------------------------------------------------------------------------------


def test_a_persistent_tap_stays_until_it_is_deleted() -> None:
    make_persistent("gn0", mac=MAC, mtu=1400)
    assert link("gn0")["linkinfo"]["info_data"]["persist"] is True
    with Tap.open("gn0", existing="require") as tap:
        assert (tap.mac, tap.mtu, tap.is_persistent) == (MAC, 1400, True)
    assert "gn0" in names()
    assert Tap.delete("gn0") is True
    assert Tap.delete("gn0") is False
    assert names() == {"lo"}


def test_persistence_can_be_given_and_taken() -> None:
    with Tap.open("gn0") as tap:
        tap.persist()
        assert tap.is_persistent
    with Tap.open("gn0") as tap:
        tap.persist(False)
        assert not tap.is_persistent
    assert names() == {"lo"}


def test_existing_says_what_may_be_there() -> None:
    with pytest.raises(NotFoundError):
        Tap.open("gn0", existing="require")
    make_persistent("gn0")
    index = link("gn0")["ifindex"]
    with pytest.raises(ConflictError, match="exists already"):
        Tap.open("gn0", existing="refuse")
    with Tap.open("gn0", existing="attach") as tap:
        assert tap.ifindex == index
    with Tap.open("gn1", existing="refuse") as tap:
        assert tap.name == "gn1"


def test_a_single_queue_tap_does_not_become_multi_queue() -> None:
    make_persistent("gn0")
    with pytest.raises(ConflictError, match="single queue"):
        Tap.open("gn0", queues=2)


def test_a_multi_queue_tap_takes_any_number_of_queues() -> None:
    make_persistent("gn0", queues=4)
    for queues in (1, 2, 4, 8):
        with Tap.open("gn0", queues=queues) as tap:
            assert link("gn0")["linkinfo"]["info_data"]["numqueues"] == queues
            assert len(tap.queues) == queues


# -- offloads ----------------------------------------------------------------------------------


def test_offloads_are_on_by_default_with_the_header() -> None:
    with Tap.open("gn0", vnet_hdr=True) as tap:
        assert tap.has_vnet_hdr
        assert tap.offload == Offload.CSUM | Offload.TSO4 | Offload.TSO6
    with Tap.open("gn0", vnet_hdr=True, offload=Offload.NONE) as tap:
        assert tap.offload == Offload.NONE
    with Tap.open("gn0") as tap:
        assert not tap.has_vnet_hdr
        assert tap.offload == Offload.NONE


@pytest.mark.parametrize("offload", [Offload.TSO4, Offload.CSUM | Offload.USO4])
def test_offloads_that_need_each_other(offload: Offload) -> None:
    with pytest.raises(ConfigError, match="offload="):
        Tap.open("gn0", vnet_hdr=True, offload=offload)


def test_a_refused_offload_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    everything = ioctl.OFFLOAD_DEFAULT | Offload.USO4 | Offload.USO6
    by_value = ioctl.by_value

    def old_kernel(fd: int, request: Ioctl, value: int, *rest: str) -> None:
        if request is Ioctl.TUNSETOFFLOAD and value & Offload.USO4:
            raise HostError("TUNSETOFFLOAD", "gn0", errno.EINVAL)
        by_value(fd, request, value, *rest)

    monkeypatch.setattr(ioctl, "by_value", old_kernel)
    with (
        caplog.at_level(logging.WARNING),
        Tap.open("gn0", vnet_hdr=True, offload=everything) as tap,
    ):
        assert tap.offload == ioctl.OFFLOAD_DEFAULT
    assert "CSUM+TSO4+TSO6+USO4+USO6: TUNSETOFFLOAD gn0: EINVAL" in caplog.text
