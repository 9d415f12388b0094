"""Making the devices that the plan describes."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Network

from ..errors import ConfigError, ConflictError, HostError
from ..model.terms import MTU_MIN_IPV6
from ..plan import BridgeDevice, GuestDevice
from ..ruleset.names import GROUP_RETIRED
from . import link, netns
from . import netlink as nl
from . import route as routing
from .netlink import Message, NetlinkSocket
from .tap.ioctl import Ioctl, TunFlag, pack_flags

_TUN = "/dev/net/tun"
_MULTICAST_IPV6 = IPv6Network("ff00::/8")
#: The kernel needs some milliseconds; a machine so busy that it needs more loses a guest's first
#: packets, not the guest.
_DELIVERY_TIMEOUT_S = 1.0
_DELIVERY_POLL_S = 0.0005


def make_guest_device(route: NetlinkSocket, device: GuestDevice) -> None:
    """A guest's device, complete and up; on failure nothing of it remains."""
    if device.netns is None:
        _make_tap(route, device)
        with _deleted_on_error(route, device.name):
            configure(route, device, new=True)
        return
    fd = netns.open_netns(device.netns)
    try:
        if netns.is_own(fd):
            raise ConfigError("netns", device.netns, "is the namespace that guestnet works in")
        _make_veth(route, device, fd)
        with _deleted_on_error(route, device.name):
            configure(route, device, new=True)
            _configure_inside(device, fd)
            # Asked for their index, they take note of their carrier now, not within a second:
            # until then they drop what they are to send.
            for name in (device.name, device.master):
                if name:
                    link.index_of(route, name)
            _await_delivery(route, device.addresses)
    finally:
        os.close(fd)


@contextmanager
def _deleted_on_error(route: NetlinkSocket, name: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        route.request([link.delete_link(name)])
        raise


def _make_tap(route: NetlinkSocket, device: GuestDevice) -> None:
    """A persistent TAP: it outlives this call and waits for a VMM to open it."""
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = {
            errno.ENOENT: "load the tun module (modprobe tun), or pass the device in",
            errno.EACCES: f"as root: chmod 0666 {_TUN}, as most distributions have it, or "
            f"setfacl -m u:USER:rw {_TUN}",
            errno.EPERM: f"allow the device in this container (--device {_TUN})",
        }.get(error.errno or 0, "")
        raise HostError.from_os("open", _TUN, error, hint) from None
    try:
        # VNET_HDR is the VMM's choice when it opens the TAP; MULTI_QUEUE has to match then.
        flags = TunFlag.TAP | TunFlag.NO_PI | TunFlag.EXCL
        if device.queues > 1:
            flags |= TunFlag.MULTI_QUEUE
        _tun_ioctl(fd, Ioctl.TUNSETIFF, pack_flags(device.name, flags), device.name)
        # A TAP without owner and group is anyone's who may open /dev/net/tun; ours is root's.
        _tun_ioctl(fd, Ioctl.TUNSETOWNER, device.owner or 0, device.name)
        if device.gid is not None:
            _tun_ioctl(fd, Ioctl.TUNSETGROUP, device.gid, device.name)
        # Ours by its group before it can outlive this process: a start finds it, or it is gone.
        route.request([link.set_link(device.name, group=device.group)])
        _tun_ioctl(fd, Ioctl.TUNSETPERSIST, 1, device.name)
    finally:
        os.close(fd)


def _tun_ioctl(fd: int, request: Ioctl, argument: bytes | int, name: str) -> None:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        if request is Ioctl.TUNSETIFF and error.errno in (errno.EBUSY, errno.EEXIST):
            raise ConflictError("tap", name, "a device of that name exists already") from None
        hint = f"{_TUN} is not the device" if error.errno == errno.ENOTTY else ""
        raise HostError.from_os(request.name, name, error, hint) from None


def _make_veth(route: NetlinkSocket, device: GuestDevice, netns_fd: int) -> None:
    message = link.new_veth(
        device.name,
        device.group,
        device.guest_interface,
        device.guest_mac,
        device.mtu,
        netns_fd,
    )
    try:
        route.request([message])
    except HostError as error:
        if error.errno == errno.EEXIST:
            raise ConflictError(
                "guest_interface",
                device.guest_interface,
                f"{device.name} here or {device.guest_interface} in {device.netns} exists already",
            ) from None
        raise


def configure(route: NetlinkSocket, device: GuestDevice, *, new: bool = False) -> None:
    """Bring a standing device to what it should be. Repeating it disturbs no traffic."""
    index = _index(route, device.name)
    master = _index(route, device.master) if device.master else None
    # One system call. The device is in its group before it is up, so no packet passes unpoliced;
    # both in one message would have the kernel walk all IPv6 routes once more.
    messages = [
        link.set_link(
            device.name,
            index=index,
            group=device.group,
            mac=device.host_mac or None,
            mtu=device.mtu,
            master=master,
            host_side=True,
            has_ipv6=_has_ipv6(device.mtu),
        ),
    ]
    if device.master:
        messages.append(link.bridge_port(device.name, index, isolated=device.isolated))
        messages.append(link.add_forwarding_entry(device.name, index, device.guest_mac))
    messages.append(link.set_link(device.name, index=index, up=True))
    messages += [routing.add_address(device.name, index, address) for address in device.addresses]
    messages += [routing.add_route(device.name, index, prefix) for prefix in device.routes]
    if new and device.routes and device.netns is None:
        # The kernel keeps these routes in one long list, and makes this one anew when a VMM opens
        # the TAP. One of a device that has its carrier it would not: neighbour discovery needs it.
        messages.append(
            routing.delete_route(device.name, index, _MULTICAST_IPV6, routing.RT_TABLE_LOCAL)
        )
    where = master if master is not None else index
    messages += [
        routing.add_neighbour(device.neighbour_device, where, address.ip, device.guest_mac)
        for address in device.guest_addresses
    ]
    try:
        route.request(messages)
    except HostError as error:
        if error.errno == errno.EXFULL:
            hint = "a Linux bridge has at most 1023 ports; a routed network has no such limit"
            raise HostError(error.call, error.target, error.errno, hint) from None
        raise


def _has_ipv6(mtu: int) -> bool:
    """Whether a device of this MTU has an IPv6 side whose settings could be changed."""
    return mtu >= MTU_MIN_IPV6 and os.path.exists("/proc/sys/net/ipv6")


def _configure_inside(device: GuestDevice, netns_fd: int) -> None:
    """The guest's end: addresses, default routes, loopback up."""
    with netns.inside(netns_fd), NetlinkSocket(nl.NETLINK_ROUTE) as route:
        name = device.guest_interface
        index = _index(route, name)
        messages: list[Message] = [link.set_link("lo", up=True)]
        messages.append(link.set_link(name, index=index, up=True))
        messages += [routing.add_address(name, index, a) for a in device.guest_addresses]
        messages += [routing.add_default_route(name, index, g) for g in device.gateways]
        route.request(messages)
        link.index_of(route, name)
        _await_delivery(route, device.guest_addresses)


def _await_delivery(route: NetlinkSocket, addresses: Iterable[routing.Interface]) -> None:
    """Wait until IPv6 addresses work: a guest in a namespace may send its first packet at once."""
    deadline = time.monotonic() + _DELIVERY_TIMEOUT_S
    for address in addresses:
        if address.version == 6:
            while not routing.is_delivered(route, address.ip) and time.monotonic() < deadline:
                time.sleep(_DELIVERY_POLL_S)


def make_bridge(route: NetlinkSocket, bridge: BridgeDevice) -> None:
    """A bridge with its gateway addresses; one that stands is brought to that, if it is one."""
    seen = link.link(route, bridge.name)
    if seen is None:
        route.request([link.new_bridge(bridge.name, bridge.mac, bridge.mtu, bridge.group)])
    elif seen.kind != "bridge":
        raise ConflictError("bridge", bridge.name, f"a {seen.kind or 'device'} has that name")
    elif seen.group not in (bridge.group, GROUP_RETIRED):
        raise ConflictError(
            "bridge", bridge.name, "a bridge of that name exists and is not guestnet's"
        )
    index = _index(route, bridge.name)
    route.request(
        [
            link.set_link(
                bridge.name,
                index=index,
                group=bridge.group,
                mac=bridge.mac,
                mtu=bridge.mtu,
                up=True,
                host_side=True,
                has_ipv6=_has_ipv6(bridge.mtu),
            ),
            *(routing.add_address(bridge.name, index, a) for a in bridge.addresses),
        ]
    )


def strip(route: NetlinkSocket, device: GuestDevice) -> None:
    """Take a device's IPv6 routes ahead of itself: each costs every other device something.

    The routes only: taking the address away would have the kernel walk all of them.
    """
    try:
        # Not `index_of`: a question about a device waits while others are being deleted.
        index = socket.if_nametoindex(device.name)
    except OSError:
        return  # gone already
    messages = [routing.delete_route(device.name, index, prefix) for prefix in device.routes]
    messages += [
        routing.delete_route(device.name, index, address.network, routing.RT_TABLE_LOCAL)
        for address in device.addresses
        if address.version == 6
    ]
    route.request(messages)


def retire(route: NetlinkSocket, names: Iterable[str]) -> None:
    """Put devices into the group that nothing passes; an absent one is no error."""
    route.request([link.set_link(n, group=GROUP_RETIRED, tolerate=(errno.ENODEV,)) for n in names])


def _index(route: NetlinkSocket, name: str) -> int:
    index = link.index_of(route, name)
    if not index:
        raise HostError("RTM_GETLINK", name, errno.ENODEV)
    return index
