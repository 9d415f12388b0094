"""The stage itself, without guestnet on it: what the other tests conclude from rests on this."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from typing import Any

import pytest

from lab import leaks, netns, plain
from lab.addresses import (
    ALLOWED,
    FORBIDDEN,
    PRIVATE,
    RESOLVER,
    SERVERS,
    SITE_IPV4,
    SITE_IPV6,
    UPLINK,
)
from lab.netns import Namespace
from lab.qemu import Guest, GuestError, Result
from lab.servers import BANNER, ECHO
from lab.world import World

pytestmark = pytest.mark.root


def url(address: object, path: str = "/", scheme: str = "http") -> str:
    host = f"[{address}]" if ":" in str(address) else address
    return f"{scheme}://{host}{path}"


def curl(namespace: Namespace, *arguments: str) -> Any:
    """What the server said, from JSON."""
    done = namespace.run(["curl", "-sS", "--max-time", "5", *arguments])
    return json.loads(done.stdout)


class TestWorld:
    def test_every_server_answers_the_site_over_both_families(self, world: World) -> None:
        for server in SERVERS:
            for address in server.addresses:
                answer = curl(world.site, url(address))
                assert (answer["server"], answer["address"]) == (server.label, str(address))

    def test_the_guest_reaches_nothing_until_it_is_attached(self, world: World) -> None:
        done = world.guest.run(["curl", "-sS", url(ALLOWED.ipv4)], check=False)
        assert done.returncode == 7  # curl: failed to connect
        assert world.arrivals() == []

    def test_names_resolve_and_certificates_hold(self, world: World) -> None:
        answer = curl(
            world.site, "--cacert", str(world.certificates.authority), f"https://{FORBIDDEN.name}/"
        )
        assert (answer["server"], answer["scheme"]) == ("forbidden", "https")

    def test_an_unknown_name_is_denied_over_udp_and_tcp(self, world: World) -> None:
        for transport in ("+notcp", "+tcp"):
            done = world.site.run(["dig", transport, "nobody.example.test"])
            assert "NXDOMAIN" in done.stdout

    def test_echo_and_banner(self, world: World) -> None:
        script = (
            "import socket\n"
            "u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.settimeout(5)\n"
            f"u.sendto(b'datagram', ('{ALLOWED.ipv6}', {ECHO})); print(u.recv(99))\n"
            f"t = socket.create_connection(('{ALLOWED.ipv4}', {ECHO}), 5)\n"
            "t.sendall(b'stream'); print(t.recv(99))\n"
            f"print(socket.create_connection(('{ALLOWED.ipv4}', {BANNER}), 5).recv(99))\n"
        )
        done = world.site.run(["python3", "-c", script])
        assert done.stdout.split() == ["b'datagram'", "b'stream'", "b'220", "allowed\\r\\n'"]

    def test_big_transfers_both_ways(self, world: World) -> None:
        size = 50_000_000
        command = f"head -c {size} /dev/zero | curl -sS --data-binary @- "
        done = world.site.run(["sh", "-c", command + url(ALLOWED.ipv6, "/upload")])
        assert json.loads(done.stdout) == {"received": size}
        done = world.site.run(
            ["sh", "-c", f"curl -sS {url(ALLOWED.ipv4, f'/bytes/{size}')} | wc -c"]
        )
        assert int(done.stdout) == size

    def test_arrivals_tell_what_came_and_from_whom(self, world: World) -> None:
        curl(world.site, url(PRIVATE.ipv6))
        connection, request = world.arrivals()
        assert (connection.server, connection.kind, connection.port) == ("private", "tcp", 80)
        assert connection.client == str(SITE_IPV6.ip)
        assert request.detail == "GET / HTTP/1.1"
        world.servers.forget()
        assert world.arrivals() == []

    def test_a_failed_tls_handshake_has_arrived_too(self, world: World) -> None:
        refused = world.site.run(["curl", "-sS", url(ALLOWED.ipv4, scheme="https")], check=False)
        assert refused.returncode == 60  # curl: the CA is unknown
        assert [arrival.port for arrival in world.arrivals(ALLOWED, kind="tcp")] == [443]

    def test_the_site_does_not_forward(self, world: World) -> None:
        assert world.site.sysctl("ipv4.ip_forward") == "0"
        assert world.site.sysctl("ipv6.conf.all.forwarding") == "0"


class TestNamespaceGuest:
    def test_masquerade_hides_the_guest(self, world: World) -> None:
        plain.forward(world)
        plain.attach_namespace(world, world.guest)
        assert curl(world.guest, url(ALLOWED.ipv4))["client"] == str(SITE_IPV4.ip)
        assert curl(world.guest, url(ALLOWED.ipv6))["client"] == str(SITE_IPV6.ip)

    def test_a_packet_that_leaves_without_masquerade_is_seen_and_unanswered(
        self, world: World
    ) -> None:
        plain.forward(world, masquerade=False)
        plain.attach_namespace(world, world.guest)
        with world.capture(f"src host {plain.GUEST_IPV4.ip}") as leaked:
            ping = world.guest.run(["ping", "-c1", "-W1", str(ALLOWED.ipv4)], check=False)
        assert ping.returncode == 1
        assert len(leaked.frames()) == 1

    def test_capture_sees_all_that_was_sent_before_it_is_asked(self, world: World) -> None:
        count = 2000
        script = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"for n in range({count}): s.sendto(b'%d' % n, ('{RESOLVER.ipv4}', {ECHO}))"
        )
        with world.capture(f"udp dst port {ECHO}") as capture:
            world.site.run(["python3", "-c", script])
            assert len(capture.frames()) == count
        assert capture.packets()[-1].load == str(count - 1).encode()
        assert f"{SITE_IPV4.ip}." in capture.lines()[0]

    def test_capture_shows_vlan_tags(self, world: World) -> None:
        frame = bytes.fromhex("ffffffffffff 026d73000002 8100 0007 0800") + b"E" * 50
        with world.capture(namespace=world.internet, interface="site0") as capture:
            with world.site.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.bind((UPLINK, 0))
                sender.send(frame)
            tagged = capture.wait_for(lambda packet: packet.haslayer("Dot1Q"))
        assert tagged["Dot1Q"].vlan == 7
        assert frame in [seen.data for seen in capture.frames()]


class TestNamespace:
    def test_enter_moves_only_this_thread_and_comes_back(self, namespace: Namespace) -> None:
        here = os.readlink("/proc/thread-self/ns/net")
        with namespace.enter():
            inside = os.readlink("/proc/thread-self/ns/net")
        assert inside == f"net:[{namespace.path.stat().st_ino}]" != here
        assert os.readlink("/proc/thread-self/ns/net") == here

    def test_enter_comes_back_from_an_error(self, namespace: Namespace) -> None:
        here = os.readlink("/proc/thread-self/ns/net")
        with pytest.raises(ZeroDivisionError), namespace.enter():
            _ = 1 / 0
        assert os.readlink("/proc/thread-self/ns/net") == here

    def test_a_failed_command_tells_what_it_said(self, namespace: Namespace) -> None:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            namespace.run(["sh", "-c", "echo why >&2; exit 3"])
        assert caught.value.returncode == 3
        assert caught.value.stderr == "why\n"

    def test_deleting_ends_what_runs_inside(self) -> None:
        with Namespace("busy") as made:
            sleeper = made.popen(["sleep", "60"])
        assert sleeper.returncode is not None
        assert made.name not in netns.names()

    def test_a_dead_owner_s_namespace_is_reaped(self) -> None:
        name = "gnlab-4194304-1-abcdef-orphan"  # no pid is that high: PID_MAX_LIMIT
        subprocess.run(["ip", "netns", "add", name], check=True)
        assert name in netns.reap_stale()
        assert name not in netns.names()

    def test_the_living_keep_theirs(self, namespace: Namespace) -> None:
        assert namespace.name not in netns.reap_stale()


class TestLeaks:
    def test_each_kind_is_noticed(self) -> None:
        before = leaks.Traces.now(tables=True)
        with Namespace("leak") as made, made.enter():
            subprocess.run(["nft", "add table inet left"], check=True)
            sleeper = subprocess.Popen(["sleep", "60"])
            try:
                found = leaks.Traces.now(tables=True).beyond(before)
            finally:
                sleeper.kill()
                sleeper.wait()
        assert f"namespaces: {made.name}" in found
        assert "tables: table inet left" in found
        assert any(line.startswith(f"processes: {sleeper.pid} ") for line in found)
        assert leaks.left_behind(before, tables=True) == []

    def test_a_daemon_that_leaves_its_parent_is_noticed(self) -> None:
        before = leaks.Traces.now(tables=False)
        spawn = "setsid sleep 61 >/dev/null 2>&1 & echo $!"
        done = subprocess.run(["sh", "-c", spawn], capture_output=True, text=True, check=True)
        pid = int(done.stdout)
        try:
            assert any(f"{pid} " in line for line in leaks.Traces.now(tables=False).beyond(before))
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


@pytest.mark.guest
class TestVirtualMachine:
    def test_it_boots_and_fetches_a_page_over_both_families(self, world: World) -> None:
        plain.forward(world)
        plain.add_tap(world)
        with Guest.on_tap(
            world.site,
            plain.DEVICE,
            plain.GUEST_MAC,
            ipv4=plain.GUEST_IPV4,
            gateway_ipv4=plain.GATEWAY_IPV4.ip,
            ipv6=plain.GUEST_IPV6,
            gateway_ipv6=plain.GATEWAY_IPV6.ip,
            mtu=1400,
            dns=RESOLVER.addresses,
        ) as guest:
            for address, seen in ((ALLOWED.ipv4, SITE_IPV4.ip), (ALLOWED.ipv6, SITE_IPV6.ip)):
                assert guest.run(f"ping -c1 -W2 {address}").ok
                page = guest.run(f"wget -qO- '{url(address)}'")
                assert json.loads(page.output)["client"] == str(seen)
            named = guest.run(["wget", "-qO-", f"http://{FORBIDDEN.name}/"])
            assert json.loads(named.output)["server"] == "forbidden"
            assert guest.run("cat /sys/class/net/eth0/mtu").output == "1400\n"
            assert guest.run("cat /sys/class/net/eth0/address").output == f"{plain.GUEST_MAC}\n"

    def test_the_agent_is_exact(self, namespace: Namespace) -> None:
        with Guest(namespace) as guest:
            awkward = "a 'quoted' $HOME\n\tline \\ without end"
            assert guest.run(["printf", "%s", awkward]).output == awkward
            assert guest.run("echo out; echo err >&2; exit 5") == Result(5, "out\nerr\n")
            assert guest.run("seq 100000").output.endswith("\n99999\n100000\n")
            assert guest.run("sleep 30", timeout_s=1).status == 137
            assert guest.run("httpd -p 8080 -h /; true").ok
            assert guest.run("wget -qO- http://127.0.0.1:8080/proc/version").ok

    def test_a_guest_that_dies_says_so(self, namespace: Namespace) -> None:
        with Guest(namespace) as guest:
            with pytest.raises(GuestError, match="the VM ended"):
                guest.run("echo last words > /dev/console; poweroff -f; sleep 9")
            assert "last words" in guest.console

    def test_it_does_not_outlive_the_one_who_holds_its_agent(self, namespace: Namespace) -> None:
        with Guest(namespace) as guest:
            guest._agent.close()
            deadline = time.monotonic() + 10
            while guest._process.poll() is None:
                assert time.monotonic() < deadline, guest.console
                time.sleep(0.05)
