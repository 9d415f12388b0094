"""A daemon of an ordinary user's own, whose machine is the lab's site."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from guestnet.errors import ConfigError
from guestnet.host import Host
from guestnet.kernel.netns import inside
from guestnet.kernel.sysctl import write
from lab import processes
from lab.addresses import ALLOWED, FORBIDDEN, PRIVATE, RESOLVER
from lab.netns import ETC_NETNS
from lab.user import User
from lab.waiting import eventually
from lab.world import World
from mine import Mine

pytestmark = pytest.mark.root

#: A guest's ping, with a payload of its own.
PING = """
import socket, struct, sys
low = sys.argv[1] == "2"
icmp = socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM, 1 if low else 58)
icmp.settimeout(20)
icmp.sendto(struct.pack("!BBHHH", 8 if low else 128, 0, 0, 0, 7) + b"guest", (sys.argv[2], 0))
data = icmp.recv(9999)
print("answered" if data[0] == (0 if low else 129) and data[6:] == b"\\0\\7guest" else data)
"""
#: A guest's datagram to the echo, in pieces.
ECHOED = """
import socket, sys
udp = socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM)
udp.settimeout(20)
udp.sendto(b"x" * 3000, (sys.argv[2], 7))
print(len(udp.recv(9999)))
"""
NAME = ALLOWED.name


def test_up_attach_exec_down(mine: Mine) -> None:
    pid = mine.up()
    assert mine.json("version")["daemon"]["rootless"]
    (state,) = (mine.user.home / ".local/state/guestnet").glob("guestnet.db")
    assert state.stat().st_uid == mine.user.uid
    box = mine.json("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}:80")
    # Asked for once more it is the same.
    again = mine.json("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}:80")
    assert again == box
    page = json.loads(mine.say("exec", "box", "--", "curl", "-sS", f"http://{NAME}/"))
    assert page["server"] == "allowed"
    who = mine.say("exec", "box", "--", "sh", "-c", "id -u; grep CapEff /proc/self/status")
    assert who.split() == [str(mine.user.uid), "CapEff:", "0" * 16]
    refused = mine.user.guestnet("exec", "box", "--", "curl", "-sS", f"http://{FORBIDDEN.name}/")
    assert refused.returncode == 6
    assert mine.json("attach", "vm", "--policy", "public")["tap"].startswith("gn")
    decided = mine.json("watch", "--recent")
    assert {(d["name"], d["verdict"]) for d in decided} >= {
        (NAME, "allow"), (FORBIDDEN.name, "deny"),
    }  # fmt: skip
    assert "guests went with it" in mine.say("down")
    assert not processes.start_time(pid)
    assert mine.user.processes() == set()


def test_what_addresses_decide_is_relayed_too(mine: Mine) -> None:
    """TCP, datagrams, questions and pings of a guest whose policy knows no names."""
    mine.world.site.sysctl("ipv4.ping_group_range", f"0 {mine.user.uid}")
    mine.up()
    box = mine.json("attach", "box", "--netns", "new", "--policy", "public")
    # The guest's own kernel setting, which says who in it may ping without rights.
    netns = os.open(box["netns"], os.O_RDONLY)
    with inside(netns):
        write("ipv4/ping_group_range", f"0 {mine.user.uid}")
    os.close(netns)
    for address in ALLOWED.addresses:
        host = f"[{address}]" if address.version == 6 else str(address)
        page = json.loads(mine.say("exec", "box", "--", "curl", "-gsS", f"http://{host}/"))
        assert page["server"] == "allowed"
        family = "2" if address.version == 4 else "10"
        shown = mine.say("exec", "box", "--", sys.executable, "-c", ECHOED, family, str(address))
        assert shown.strip() == "3000"
        ping = [sys.executable, "-c", PING, family, str(address)]
        assert mine.say("exec", "box", "--", *ping).strip() == "answered"
    page = json.loads(mine.say("exec", "box", "--", "curl", "-sS", f"http://{NAME}/"))
    assert page["server"] == "allowed"
    private = mine.user.guestnet("exec", "box", "--", "curl", "-sS", f"http://{PRIVATE.ipv4}/")
    assert private.returncode in (7, 56)  # refused, or accepted and reset
    mine.say("detach", "box")
    told = {d["protocol"] for d in mine.json("watch", "--recent") if d["verdict"] == "allow"}
    assert told >= {"tcp", "udp", "icmpv4", "icmpv6"}


def test_a_link_wider_than_the_host_s(mine: Mine) -> None:
    """Streams end within, so their packets may be of any size; a datagram learns of the way's."""
    mine.up()
    wide = mine.json("attach", "wide", "--netns", "new", "--policy", "public", "--mtu", "65520")
    assert wide["mtu"] == 65520
    echo = """
import socket, sys
family, host = int(sys.argv[1]), sys.argv[2]
with socket.create_connection((host, 7), timeout=20) as tcp:
    tcp.sendall(bytes(1 << 20))
    got = 0
    while got < 1 << 20: got += len(tcp.recv(1 << 20))
    print(got, tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 32768)
with socket.socket(family, socket.SOCK_DGRAM) as udp:
    udp.settimeout(1)
    for _ in range(20):
        udp.sendto(bytes(30000), (host, 7))
        try: print(len(udp.recv(65535)))
        except TimeoutError: continue
        break
"""
    for address in ALLOWED.addresses:
        family = "2" if address.version == 4 else "10"
        run = ("exec", "wide", "--", sys.executable, "-c", echo, family, str(address))
        assert mine.say(*run).split() == ["1048576", "True", "30000"]


HELD = """
import os, pathlib, socket, tempfile
from guestnet import Host
from guestnet.kernel.confine import confine
with Host.open(pathlib.Path(tempfile.mkdtemp()), rootless=True) as host:
    host.attach("box", netns="new", policy="public")
    doorway = host._relays.gateway._handed.doorways[0]
    marked = (*doorway.answer, *doorway.answer_udp, *doorway.answer_as_one, *doorway.relay_udp)
    child = os.fork()
    if not child:
        given_up = confine(65534, 65534)
        changed = 0
        for each in marked:
            try:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 231)
            except PermissionError:
                continue
            changed += 1
        print("user-namespace" in given_up, len(marked) > 6, changed, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_gateway_of_the_user_s_cannot_change_a_mark(mine: Mine) -> None:
    """The site's namespaces are the user's, who may do anything there; the gateway may not."""
    done = mine.user.run([sys.executable, "-P", "-c", HELD])
    assert done.stdout.split() == ["True", "True", "0"], done.stderr


MANY = """
import errno, socket, sys
family, address = int(sys.argv[1]), (sys.argv[2], 7)
for port in range(10_000, 20_000):
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.bind(("", port))
        udp.sendto(b"x", address)
"""


def test_ten_thousand_flows_of_one_guest_are_bounded_by_what_the_user_may_have(mine: Mine) -> None:
    """1024 descriptors until a program asks for more, as users have them; no more than 4096."""
    up = [sys.executable, "-P", "-m", "guestnet.cli", "up"]
    started = mine.user.run(["prlimit", "--nofile=1024:4096", *up])
    assert started.returncode == 0, started.stderr
    for guest in ("greedy", "other"):
        mine.json("attach", guest, "--netns", "new", "--policy", "public")
    workers = [
        pid for pid in mine.user.processes()
        if "-m guestnet.gateway" in processes.command_line(pid)
    ]  # fmt: skip
    before = max(descriptors(pid) for pid in workers)
    for address, away in zip(ALLOWED.addresses, FORBIDDEN.addresses, strict=True):
        family = "2" if address.version == 4 else "10"
        mine.say("exec", "greedy", "--", sys.executable, "-c", MANY, family, str(away))
        echo = [sys.executable, "-c", ECHOED, family, str(address)]
        assert mine.say("exec", "other", "--", *echo).strip() == "3000"
        # A quarter of 4096 is everybody's, and a quarter of that one guest's.
        assert max(descriptors(pid) for pid in workers) <= before + 256 + 16
    told = [d for d in mine.json("watch", "--recent") if d["rule"] == "limit: exchanges"]
    assert {d["guest"] for d in told} == {"greedy"}
    assert told[0]["reason"].startswith("at most 256")
    assert told[-1]["omitted"] or len(told) > 1


def descriptors(pid: int) -> int:
    """How many a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_later_daemon_gives_the_same_addresses(mine: Mine) -> None:
    mine.up()
    mine.say("attach", "first")
    before = mine.json("attach", "second")
    mine.say("down")
    mine.up()
    assert mine.json("ls") == []
    after = mine.json("attach", "second")
    assert after["ipv4"] == before["ipv4"]
    assert after["generation"] > before["generation"]


def test_a_second_one_is_told_who_has_it(mine: Mine) -> None:
    pid = mine.up()
    again = mine.json("up")
    assert (again["started"], again["pid"]) == (False, pid)
    other = mine.user.guestnet("--run-dir", str(mine.user.home / "other"), "up")
    assert other.returncode == 6
    assert f"is held by pid {pid}" in other.stderr


def test_the_socket_goes_to_a_group_of_the_user_s_only(mine: Mine) -> None:
    refused = mine.user.guestnet("up", "--socket-group", "nogroup")
    assert refused.returncode == 2
    assert "socket_group='nogroup': is no group of this user's" in refused.stderr
    own = mine.user.guestnet("up", "--socket-group", str(mine.user.uid))
    assert own.returncode == 0, own.stderr


def test_live_policy_explain_and_suggest(mine: Mine) -> None:
    mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", "mode=report")
    mine.say("exec", "box", "--", "curl", "-sS", f"http://{NAME}/")
    suggested = eventually(lambda: mine.say("policy", "suggest", "box").strip() or None)
    assert suggested == f"allow@{NAME}:tcp:80"
    mine.say("policy", "set", "box", suggested)
    mine.say("exec", "box", "--", "curl", "-sS", f"http://{NAME}/")
    denied = mine.user.guestnet("policy", "explain", "box", "tcp", f"{FORBIDDEN.name}:80")
    assert denied.returncode == 10


def test_a_killed_agent_ends_the_daemon_which_says_so(mine: Mine) -> None:
    pid = mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}")
    agent = eventually(lambda: mine.find("guestnet.kernel.rootless.agent"))
    os.kill(agent, signal.SIGKILL)
    eventually(lambda: not processes.start_time(pid))
    eventually(lambda: not mine.user.processes())
    log = mine.log
    assert f"pid {agent} was killed (SIGKILL)" in log
    # What was known is known still, and nothing of it is in the way.
    mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}")


def test_a_killed_daemon_leaves_nothing(mine: Mine) -> None:
    pid = mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not mine.user.processes())
    mine.up()
    assert mine.json("ls") == []


def test_every_call_says_that_the_site_is_gone(mine: Mine) -> None:
    """In a program of the user's own, which goes on."""
    program = """
import os, signal, time
from guestnet import Host, HostError
with Host.open(rootless=True, remember=False) as host:
    host.attach("vm", policy="allow@name.test")
    lost = []
    host.watch_site(lost.append)
    os.kill(host._site.agent.pid, signal.SIGKILL)
    while not lost: time.sleep(0.01)
    print(lost[0])
    for call in (lambda: host.attach("other"), lambda: host.detach("vm"), host.counters):
        try: call()
        except HostError as error: print(error)
"""
    done = mine.user.run([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    reason, *errors = done.stdout.splitlines()
    assert reason.endswith("was killed (SIGKILL)")
    assert len(errors) == 3
    assert all("rootless site" in error and reason in error for error in errors)


@pytest.mark.parametrize("whose", ["user", "root of a namespace", "root without the right"])
def test_a_gateway_without_a_user_of_its_own_is_confined_all_the_same(
    world: World, whose: str
) -> None:
    """It is still its user's process: so what it could do as that is taken away one by one.

    Root of a namespace in which nobody else exists cannot become anybody else either, nor can the
    machine's in a container that has not the right to.
    """
    program = """
import os, socket, subprocess
from guestnet.kernel.confine import confine
done = confine(65534, 65534)
print(*done)
mine, other = os.getpid(), os.getppid()
for name, attempt in {
    "file": lambda: open("/etc/passwd"),
    "home": lambda: open(os.environ["HOME"] + "/x", "w"),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "signal": lambda: os.kill(other, 0),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "ptrace": lambda: os.pidfd_open(other),
}.items():
    try: attempt()
    except OSError: continue
    print("may", name)
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        socket.socket(family, kind).close()
"""
    with User(world.site) as user:
        command = [sys.executable, "-c", program]
        if whose == "root without the right":
            without = ["setpriv", "--bounding-set", "-setuid,-setgid"]
            done = subprocess.run([*without, *command], capture_output=True, text=True, check=False)
        else:
            done = user.run([*(["unshare", "-Ur"] if whose != "user" else []), *command])
        assert done.returncode == 0, done.stderr
        first = ["limits"] if whose == "user" else ["limits", "capabilities"]
        rest = ["user-namespace", "no-new-privileges", "landlock", "seccomp"]
        assert done.stdout.split() == first + rest


def test_what_runs_in_a_guest_does_not_choose_its_policy(mine: Mine) -> None:
    """It is the user's, whose daemon would do what it asks; but it does not find that one."""
    mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", "none")
    ask = (sys.executable, "-P", "-m", "guestnet.cli", "policy", "set", "box", "all")
    for enter in (("exec", "box"), ("run",)):
        asked = mine.user.guestnet(*enter, "--", *ask)
        assert asked.returncode == 8, asked
        # Nor by taking away what lies over it, with every right that it can give itself.
        look = f"umount {mine.socket.parent}; ls -A {mine.socket.parent}"
        looked = mine.user.guestnet(*enter, "--", "unshare", "-Urm", "sh", "-c", look)
        assert (looked.returncode, looked.stdout) == (0, "")
        assert "umount" in looked.stderr
    assert [each["policy"] for each in mine.json("ls")] == ["none"]
    mine.say("policy", "set", "box", "all")


def test_a_namespace_of_somebody_else_s_is_refused(mine: Mine) -> None:
    mine.up()
    other = mine.world.add_guest("other")
    done = mine.user.guestnet("attach", "box", "--netns", str(other.path))
    assert done.returncode == 2
    assert "belongs to another user namespace" in done.stderr
    assert mine.json("ls") == []


def test_a_resolver_on_the_host_s_loopback_serves_guests(mine: Mine) -> None:
    """As systemd-resolved's does; and another one from when the host has another."""
    local = replace(RESOLVER, name="local.example.test", ipv4=IPv4Address("127.0.0.53"), ipv6=None)
    server = mine.world.serve(mine.world.site, local)
    conf = ETC_NETNS / mine.world.site.name / "resolv.conf"
    before = conf.read_text()
    conf.write_text("nameserver 127.0.0.53\n")
    mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}:80")
    fetch = ("exec", "box", "--", "curl", "-sS", f"http://{NAME}/")
    assert json.loads(mine.say(*fetch))["server"] == "allowed"
    assert {a.address for a in server.arrivals(kind="dns")} == {"127.0.0.53"}
    # The guest itself cannot get there.
    ask = ("exec", "box", "--", "dig", "+time=2", "+tries=1", "@127.0.0.53", NAME)
    assert mine.user.guestnet(*ask).returncode == 9
    server.stop()
    conf.write_text(before)
    eventually(lambda: mine.user.guestnet(*fetch).returncode == 0)


def test_doctor_names_what_is_in_the_way(world: World) -> None:
    with User(world.site, tun=False) as user:
        found = {f["check"]: f for f in json.loads(user.guestnet("doctor", "--json").stdout)}
        assert found["rootless site"]["status"] == "ok"
        # As this machine has them: closed to all but root.
        assert found["tun"]["status"] == "warning"
        assert f"setfacl -m u:{user.uid}:rw /dev/net/tun" in found["tun"]["remedy"]
        assert found["ping"]["status"] == "warning"
        done = user.guestnet("run", "--", "cat", "{tap}")
        assert done.returncode == 7
        assert "/dev/net/tun" in done.stderr
        world.site.sysctl("ipv4.ping_group_range", "0 2147483647")
        found = {f["check"]: f for f in json.loads(user.guestnet("doctor", "--json").stdout)}
        assert found["ping"]["status"] == "ok"


def test_forbidden_user_namespaces_are_named_with_the_remedy(world: World) -> None:
    with User(world.site) as user:
        forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
        command = ["unshare", "-Ur", "sh", "-c", forbid, "sh", sys.executable, "-m", "guestnet.cli"]
        for arguments in (["run", "--rootless", "--", "true"], ["--rootless", "up"]):
            done = user.run([*command, *arguments])
            assert done.returncode == 7, done.stderr
            assert "sysctl -w user.max_user_namespaces=" in done.stderr
        done = user.run([*command, "--rootless", "doctor", "--json"])
        found = {f["check"]: f for f in json.loads(done.stdout)}
        assert found["user namespaces"]["status"] == "error"


def test_what_cannot_be_asked_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a namespace of its own"):
        Host.open(tmp_path, rootless=True, site="some")
    with pytest.raises(ConfigError, match="remember"):
        Host.open(tmp_path, remember=False)


def test_root_may_have_one_too(world: World, tmp_path: Path) -> None:
    """Which leaves the namespace that it was started in alone."""
    with world.site.enter(), Host.open(tmp_path / "state", rootless=True) as host:
        box = host.attach("box", netns="new", policy=f"allow@{NAME}")
        assert host.attachment("box") == box
        assert host.counters()
    assert world.site.run(["nft", "list", "tables"]).stdout == ""


def test_a_user_without_a_daemon_is_told_what_to_do(world: World) -> None:
    with User(world.site) as user:
        assert "guestnet up" in user.guestnet("ls").stderr
