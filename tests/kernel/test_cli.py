"""The command line, end to end: `guestnet up` in a namespace, and everything one does then."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestnet.cli.guests import FORMATS
from guestnet.cli.inside import hosts, resolv_conf
from guestnet.cli.values import destination
from guestnet.errors import ConfigError
from guestnet.vmm import FORMATS as VMM_FORMATS
from lab.netns import Namespace, veth

#: Seconds for one command; `up` repairs, and the machine may be busy.
PATIENCE_S = 60
BARE = {key: value for key, value in os.environ.items() if not key.startswith("GUESTNET_")}


class Instance:
    """One guestnet: a site, directories, and the command line that is told of them."""

    def __init__(self, site: Namespace, directory: Path) -> None:
        self.site = site
        self.state_dir = directory / "state"
        self.run_dir = directory / "run"

    def run(self, *arguments: str | bytes, stdin: str = "", **environ: str) -> Any:
        """Run a command to its end."""
        directories = {
            "GUESTNET_STATE_DIR": str(self.state_dir),
            "GUESTNET_RUN_DIR": str(self.run_dir),
        }
        return subprocess.run(
            [sys.executable, "-m", "guestnet.cli", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env={**BARE, **directories, **environ},
        )

    def ok(self, *arguments: str | bytes, **more: str) -> str:
        """What a command that succeeds prints."""
        done = self.run(*arguments, **more)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done)
        return str(done.stdout)

    def json(self, *arguments: str | bytes, **more: str) -> Any:
        return json.loads(self.ok(*arguments, "--json", **more))

    def fails(self, status: int, *arguments: str | bytes, **more: str) -> str:
        """What a command that fails with `status` says."""
        done = self.run(*arguments, **more)
        assert (done.returncode, done.stdout) == (status, ""), (arguments, done)
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    def up(self, *arguments: str) -> Any:
        return self.json("up", "--site", self.site.name, *arguments)

    def end(self) -> None:
        """Leave no daemon, whatever the test did."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            kill(int((self.run_dir / "guestnet.pid").read_text()))


def kill(pid: int) -> None:
    """End a daemon of ours at once, and wait for that."""
    with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(pid), "rb") as process:
        signal.pidfd_send_signal(process.fileno(), signal.SIGKILL)
        select.select([process], [], [], PATIENCE_S)


@pytest.fixture
def site(namespace: Namespace) -> Iterator[Namespace]:
    """A site with a way out, so that `explain` has something to allow."""
    with Namespace("uplink") as uplink:
        veth(namespace, "up0", uplink, "down0")
        namespace.ip(
            "addr add 45.66.77.2/24 dev up0",
            "route add default via 45.66.77.1",
            "addr add 2a0a:1234::2/64 dev up0 nodad",
            "route add ::/0 via 2a0a:1234::1",
        )
        yield namespace


@pytest.fixture
def idle(site: Namespace, tmp_path: Path) -> Iterator[Instance]:
    """An instance whose daemon is not up."""
    made = Instance(site, tmp_path / "one")
    yield made
    made.end()


@pytest.fixture
def guestnet(idle: Instance) -> Instance:
    """An instance whose daemon is up."""
    idle.up()
    return idle


# -- without a daemon ------------------------------------------------------------------------------


@pytest.mark.root
def test_without_a_daemon_commands_say_how_to_start_one(idle: Instance) -> None:
    for command in (["ls"], ["attach", "vm-1"], ["detach", "vm-1"], ["gc"], ["network", "ls"]):
        said = idle.fails(8, *command)
        assert said.startswith("guestnet: connect ")
        assert said.endswith("no daemon runs here; run: guestnet up\n")
    document = json.loads(idle.fails(8, "ls", "--json"))
    assert (document["code"], document["call"]) == ("unreachable", "connect")
    assert "is not up" in idle.ok("down")
    assert idle.json("version")["daemon"] is None


@pytest.mark.root
def test_doctor_works_without_a_daemon(idle: Instance) -> None:
    found = {finding["check"]: finding for finding in idle.json("doctor")}
    assert found["kernel"]["status"] == "ok"
    assert (found["daemon"]["status"], found["daemon"]["remedy"]) == ("warning", "run: guestnet up")


def policy_check(*arguments: str, stdin: str = "") -> Any:
    return subprocess.run(
        [sys.executable, "-m", "guestnet.cli", "policy", "check", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_policy_check_needs_nothing_but_the_text(tmp_path: Path) -> None:
    (tmp_path / "policy").write_text("# the internet\npublic\nallow@public:tcp:443\n")
    done = policy_check("--file", str(tmp_path / "policy"))
    assert done.returncode == 0
    canonical, remark = done.stdout.splitlines()
    assert canonical == "allow@dns,allow@public,allow@public:tcp:443"
    assert remark.startswith("rule 2 `allow@public:tcp:443` never matches")
    assert json.loads(policy_check("--file=-", "--json", stdin="none").stdout) == {
        "policy": "none",
        "remarks": [],
    }


def test_policy_check_points_at_the_character() -> None:
    done = policy_check("allow@dns,alow@any")
    assert done.returncode == 2
    assert done.stderr.endswith("\n  allow@dns,alow@any\n            ^\n")


@pytest.mark.parametrize("arguments", [[], ["public", "--file", "x"], ["--file", "/nowhere"]])
def test_policy_check_wants_one_policy(arguments: list[str]) -> None:
    assert policy_check(*arguments).returncode == 2


def test_the_help_names_every_format() -> None:
    assert tuple(VMM_FORMATS) == FORMATS


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        ("1.1.1.1:443", None, ("1.1.1.1", 443)),
        ("1.1.1.1", "443", ("1.1.1.1", 443)),
        ("1.1.1.1", None, ("1.1.1.1", None)),
        ("[2606::1]:443", None, ("2606::1", 443)),
        ("[2606::1]", "443", ("2606::1", 443)),
        ("2606::1", "443", ("2606::1", 443)),
        ("2606::1", None, ("2606::1", None)),
    ],
)
def test_destinations(text: str, port: str | None, expected: tuple[str, int | None]) -> None:
    assert destination(text, port) == expected


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("1.1.1.1:443", "443"),
        ("[2606::1]:443", "443"),
        ("[2606::1]x", None),
        ("1.1.1.1:", None),
        ("1.1.1.1:0", None),
        ("1.1.1.1:65536", None),
        ("1.1.1.1:٣", None),
        ("1.1.1.1", "-1"),
    ],
)
def test_destinations_that_are_none(text: str, port: str | None) -> None:
    with pytest.raises(ConfigError):
        destination(text, port)


# -- a day of an owner -----------------------------------------------------------------------------


@pytest.mark.root
def test_from_up_to_down(idle: Instance) -> None:
    said = idle.ok("up", "--site", idle.site.name)
    assert f"socket {idle.run_dir}/guestnet.sock" in said
    assert "was up already" in idle.ok("up", "--site", idle.site.name)
    assert stat.S_IMODE((idle.run_dir / "guestnet.sock").stat().st_mode) == 0o600

    idle.ok("network", "create", "ci", "--ipv4", "10.80.0.0/24", "--ipv6", "none", "--rest", "0")
    attachment = idle.json("attach", "vm-1", "--network", "ci", "--policy", "public")
    assert {key: attachment[key] for key in ("guest", "network", "ipv4", "ipv6", "mtu")} == {
        "guest": "vm-1",
        "network": "ci",
        "ipv4": "10.80.0.2/30",
        "ipv6": None,
        "mtu": 1500,
    }
    assert attachment["gateway_ipv4"] == "10.80.0.1"
    assert {"tap", "mac", "gateway_ipv6", "dns"} < set(attachment)
    devices = json.loads(idle.site.run(["ip", "-j", "link", "show", attachment["tap"]]).stdout)
    assert devices[0]["mtu"] == 1500

    assert idle.json("ls") == idle.json("ls", "--network", "ci") == [attachment]
    assert idle.json("show", "vm-1") == {**attachment, "usage": idle.json("show", "vm-1")["usage"]}
    assert idle.json("network", "show", "ci")["attached"] == 1
    assert "has guests ('vm-1'); detach" in idle.fails(3, "network", "rm", "ci")
    assert idle.json("gc") == {"steps": []}
    assert idle.ok("detach", "vm-1", "vm-2") == "vm-1 is detached\nvm-2 was not attached\n"
    idle.ok("network", "rm", "ci")
    assert idle.json("network", "ls") == []
    assert "guests keep their network" in idle.ok("down")
    assert not (idle.run_dir / "guestnet.sock").exists()


@pytest.mark.root
def test_tables_are_plain_in_a_pipe(guestnet: Instance) -> None:
    guestnet.ok("attach", "vm-1", "--policy", "public")
    guestnet.ok("attach", "\x1b[31m[bold]x\n")
    lines = guestnet.ok("ls").splitlines()
    assert lines[0].split() == ["GUEST", "NETWORK", "DEVICE", "IPV4", "IPV6", "MAC", "POLICY"]
    assert lines[1].startswith("'\\x1b[31m[bold]x\\n'  default  gn")
    assert lines[2].split()[0] == "vm-1"
    assert len(lines) == 3


@pytest.mark.root
def test_every_format_is_shown(guestnet: Instance) -> None:
    attachment = guestnet.json("attach", "vm-1")
    for name in FORMATS:
        assert guestnet.ok("show", "vm-1", "--format", name).strip()
    told = guestnet.json("show", "vm-1", "--format", "firecracker", "--with", "mtu=off")
    assert told == {
        "iface_id": "eth0",
        "host_dev_name": attachment["tap"],
        "guest_mac": attachment["mac"],
    }
    text = guestnet.ok("show", "vm-1", "--format", "qemu", "--with", "vhost")
    assert text.startswith(f"-netdev tap,id=net-eth0,ifname={attachment['tap']},")
    assert "vhost=on" in text
    assert "did you mean 'qemu'?" in guestnet.fails(2, "show", "vm-1", "--format", "qemuu")
    guestnet.fails(2, "show", "vm-1", "--format", "qemu", "--with", "vhost=maybe")
    guestnet.fails(2, "show", "vm-1", "--with", "vhost")
    guestnet.fails(4, "show", "vm-2", "--format", "qemu")


@pytest.mark.root
def test_explain_answers_by_its_status(guestnet: Instance) -> None:
    guestnet.ok("attach", "vm-1", "--policy", "public")
    said = guestnet.ok("policy", "explain", "vm-1", "tcp", "1.1.1.1:443")
    assert said.startswith("allowed by rule 1 `allow@public`\n")
    assert guestnet.json("policy", "explain", "vm-1", "tcp", "[2606::1]:443")["group"] == "public"
    guestnet.ok("policy", "explain", "vm-1", "icmpv4", "8.8.8.8")
    denied = guestnet.run("policy", "explain", "vm-1", "tcp", "169.254.169.254", "80")
    assert denied.returncode == 10
    assert denied.stdout.startswith("denied by `")
    ingress = guestnet.run("policy", "explain", "vm-1", "tcp", "1.1.1.1:443", "--ingress", "--json")
    assert (ingress.returncode, json.loads(ingress.stdout)["allowed"]) == (10, False)
    guestnet.fails(4, "policy", "explain", "vm-2", "tcp", "1.1.1.1:443")


@pytest.mark.root
@pytest.mark.parametrize(
    "guest",
    [
        "../x",
        "..",
        ".",
        "a;reboot",
        "a\nb",
        "a%2Fb",
        "a?b#c",
        "ü🦊",
        "x" * 255,
        " ",
        "$(id)",
        "a&b=c",
    ],
)
def test_hostile_guest_ids(guestnet: Instance, guest: str) -> None:
    attachment = guestnet.json("attach", guest)
    assert attachment["guest"] == guest
    assert guestnet.json("show", guest)["guest"] == guest
    assert guestnet.json("attach", guest) == attachment
    assert guestnet.json("detach", guest) == [{"guest": guest, "detached": True}]
    assert guestnet.json("ls") == []


@pytest.mark.root
def test_guest_ids_that_are_none(guestnet: Instance) -> None:
    for guest in ("", "x" * 256, b"\xff\xfe"):
        for command in ("attach", "detach"):
            assert guestnet.fails(2, command, guest).startswith("guestnet: guest=")
    # Like an option, so it needs the two dashes of any command.
    assert json.loads(guestnet.ok("attach", "--json", "--", "-rf"))["guest"] == "-rf"


@pytest.mark.root
def test_errors_are_the_daemons_own(guestnet: Instance) -> None:
    said = guestnet.fails(2, "network", "create", "ci", "--ipv4", "10.0.0.1/16")
    assert said == ("guestnet: ipv4='10.0.0.1/16': has host bits set; the network is 10.0.0.0/16\n")
    for record, words in (("a.test", "NAME=ADDRESS"), ("a.test=10.0.0.256", "neither an address")):
        assert words in guestnet.fails(2, "network", "create", "ci", "--record", record)
    assert "tls://ADDRESS" in guestnet.fails(2, "network", "create", "ci", "--dns", "tls://x")
    document = json.loads(guestnet.fails(2, "attach", "a", "--policy", "publik", "--json"))
    assert (document["code"], document["position"]) == ("policy", 0)
    guestnet.fails(4, "attach", "a", "--network", "none")
    guestnet.fails(2, "attach", "a", "--owner", "no-such-user")
    guestnet.fails(2, "attach", "a", "--mtu", "much")


@pytest.mark.root
def test_what_a_network_answers_by_itself(guestnet: Instance) -> None:
    options = ["--record", "db.test=10.0.0.5", "--record", "db.test=fd00::5"]
    options += ["--record", "www.test=db.test", "--serve-stale", "600", "--no-strip-ech"]
    options += ["--dns", "tls://9.9.9.9:853#dns.quad9.net,9.9.9.9", "--ipv4", "10.80.0.0/24"]
    spec = guestnet.json("network", "create", "ci", *options)["spec"]
    assert spec["records"] == {"db.test": ["10.0.0.5", "fd00::5"], "www.test": ["db.test"]}
    assert (spec["serve_stale_s"], spec["strip_ech"], spec["deny_encrypted_dns"]) == (
        600,
        False,
        True,
    )
    assert spec["dns"] == ["tls://9.9.9.9#dns.quad9.net", "9.9.9.9"]
    shown = guestnet.ok("network", "show", "ci")
    assert "db.test=10.0.0.5, db.test=fd00::5, www.test=db.test" in shown


@pytest.mark.root
def test_policies_from_files_and_owners_by_name(guestnet: Instance) -> None:
    asked = ("attach", "vm-1", "--policy-file", "-", "--owner", "nobody", "--group", "0")
    attachment = guestnet.json(*asked, stdin="public # all of it\n")
    assert attachment["policy"] == "allow@dns,allow@public"
    assert (attachment["owner"], attachment["group"]) == (65534, 0)


# -- instances -------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_second_up_is_told_who_holds_it(guestnet: Instance, tmp_path: Path) -> None:
    pid = guestnet.up()["pid"]
    site = ("up", "--site", guestnet.site.name)
    elsewhere = str(tmp_path / "two")
    for variable in ("GUESTNET_RUN_DIR", "GUESTNET_STATE_DIR"):
        other = {"GUESTNET_RUN_DIR": elsewhere, variable: elsewhere}
        said = guestnet.fails(6, *site, **other)
        assert f"is held by pid {pid} (" in said
    said = guestnet.fails(3, *site, GUESTNET_STATE_DIR=elsewhere)
    assert f"(pid {pid}) has '{guestnet.state_dir}'" in said
    assert guestnet.json("version")["daemon"]["pid"] == pid


@pytest.mark.root
def test_down_says_what_becomes_of_a_rootless_daemons_guests(idle: Instance) -> None:
    idle.ok("up", "--rootless")
    assert "guests went with it" in idle.ok("down")


@pytest.mark.root
def test_two_instances_side_by_side(guestnet: Instance, tmp_path: Path) -> None:
    with Namespace("second") as namespace:
        second = Instance(namespace, tmp_path / "two")
        try:
            second.up()
            for instance in (guestnet, second):
                attachment = instance.json("attach", "vm-1")
                assert attachment["ipv4"] == "172.16.0.2/30"
                assert instance.json("ls") == [attachment]
            second.ok("detach", "vm-1")
            assert len(guestnet.json("ls")) == 1
            second.ok("down")
            assert guestnet.json("doctor")
        finally:
            second.end()


@pytest.mark.root
def test_options_move_an_instance_too(site: Namespace, tmp_path: Path) -> None:
    instance = Instance(site, tmp_path / "unused")
    where = (f"--state-dir={tmp_path}/s", f"--run-dir={tmp_path}/r")
    instance.ok(*where, "up", "--site", site.name)
    assert not instance.state_dir.exists()
    instance.ok(*where, "attach", "vm-1")
    instance.ok(*where, "down")
    assert (tmp_path / "s" / "guestnet.db").exists()


@pytest.mark.root
def test_after_a_kill_attachments_are_still_there(guestnet: Instance) -> None:
    attachment = guestnet.json("attach", "vm-1", "--policy", "public")
    kill(guestnet.json("version")["daemon"]["pid"])
    assert "its daemon is gone; run: guestnet up" in guestnet.fails(8, "ls")
    assert guestnet.up()["started"] is True
    assert guestnet.json("ls") == [attachment]
    assert guestnet.json("gc") == {"steps": []}


@pytest.mark.root
def test_a_start_that_fails_says_what_the_daemon_says(idle: Instance, tmp_path: Path) -> None:
    assert "netns='none-such'" in idle.fails(2, "up", "--site", "none-such")
    config = tmp_path / "guestnet.toml"
    config.write_text("[network.ci]\nmtu = 70000\n")
    said = idle.fails(2, "--config", str(config), "up", "--site", idle.site.name)
    assert said.startswith("guestnet: guestnet.toml: network.ci.mtu=70000: ")
    (tmp_path / "file").touch()
    idle.fails(7, "up", GUESTNET_RUN_DIR=str(tmp_path / "file" / "run"))
    assert idle.up()["started"] is True


@pytest.mark.root
def test_the_policy_of_a_network_is_set_and_the_files_comes_back(
    idle: Instance, tmp_path: Path
) -> None:
    config = tmp_path / "guestnet.toml"
    other = '[network.other]\nipv4 = "10.8.0.0/16"\nipv6 = "none"\n'
    config.write_text(f'[network.default]\npolicy = "none"\n{other}')
    idle.ok("--config", str(config), "up", "--site", idle.site.name)
    idle.ok("attach", "vm-1")
    idle.ok("attach", "vm-2", "--policy", "none")
    said = idle.ok("policy", "set", "--network", "default", "public")
    assert said == "network default has the policy allow@dns,allow@public\n"
    idle.ok("policy", "set", "--network", "other", "private")
    policies = {each["guest"]: each["policy"] for each in idle.json("ls")}
    assert policies == {"vm-1": "allow@dns,allow@public", "vm-2": "none"}
    assert "of both" in idle.fails(2, "policy", "set", "--network", "default", "vm-1", "public")
    assert "say whose policy" in idle.fails(2, "policy", "set")
    idle.ok("down")
    idle.ok("--config", str(config), "up", "--site", idle.site.name)
    assert {each["policy"] for each in idle.json("ls")} == {"none"}
    assert idle.json("network", "show", "other")["spec"]["policy"] == "allow@dns,allow@private"


@pytest.mark.root
def test_watch_tells_of_flows_in_words(guestnet: Instance) -> None:
    guestnet.ok("network", "create", "default", "--dns", "none")
    with Namespace("box") as box:
        policy = "allow:ingress@host:udp:53"
        guestnet.ok("attach", "vm-1", "--netns", str(box.path), "--policy", policy)
        with guestnet.site.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("172.16.0.2", 53))
        with box.enter(), pytest.raises(ConnectionRefusedError):
            socket.create_connection(("10.20.30.40", 80), PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while len(lines := guestnet.ok("watch", "--recent").splitlines()) < 2:
            assert time.monotonic() < deadline
        guestnet.ok("detach", "vm-1")
        while len(lines := guestnet.ok("watch", "--recent").splitlines()) < 3:
            assert time.monotonic() < deadline
    told = sorted(line.partition("  ")[2] for line in lines)
    assert told[0].startswith(
        "vm-1  DENIED   tcp  ? [10.20.30.40]:80  by `default_egress=deny`  tcp to 10.20.30.40"
    )
    assert told[1] == f"vm-1  allowed  udp  from 172.16.0.1 to port 53  by `{policy}`"
    assert told[2].startswith(f"vm-1  ended    udp  from 172.16.0.1 to port 53  by `{policy}`  ")


@pytest.mark.root
def test_up_in_the_foreground_stays(idle: Instance) -> None:
    process = idle.site.popen(
        [sys.executable, "-m", "guestnet.cli", "up", "--foreground"],
        env={
            **BARE,
            "GUESTNET_STATE_DIR": str(idle.state_dir),
            "GUESTNET_RUN_DIR": str(idle.run_dir),
        },
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert b"serving on" in process.stderr.readline()
    assert idle.json("version")["daemon"]["pid"] == process.pid
    assert idle.json("down") == {"stopped": True, "pid": process.pid}
    assert process.wait(PATIENCE_S) == 0


# -- exec ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_exec_in_a_namespace_guest(guestnet: Instance) -> None:
    guestnet.ok("network", "create", "ci", "--ipv4", "10.80.0.0/24", "--dns", "9.9.9.9,2620:fe::fe")
    with Namespace("guest") as guest:
        guestnet.ok("attach", "box", "--network", "ci", "--netns", str(guest.path))
        outside = Path("/etc/resolv.conf").read_text()
        addresses = json.loads(guestnet.ok("exec", "box", "--", "ip", "-j", "addr", "show", "eth0"))
        assert addresses[0]["addr_info"][0]["local"] == "10.80.0.2"
        assert guestnet.ok("exec", "box", "cat", "/etc/resolv.conf").splitlines()[1:] == [
            "nameserver 9.9.9.9",
            "nameserver 2620:fe::fe",
        ]
        assert "10.80.0.2 box" in guestnet.ok("exec", "box", "cat", "/etc/hosts")
        assert guestnet.ok("exec", "box", "ls", "/sys/class/net").split() == ["eth0", "lo"]
        assert guestnet.ok("exec", "box", "cat", stdin="through") == "through"
        assert guestnet.run("exec", "box", "--", "sh", "-c", "exit 7").returncode == 7
        assert guestnet.run("exec", "box", "--", "sh", "-c", "kill -9 $$").returncode == -9
        assert "No such file" in guestnet.fails(127, "exec", "box", "none-such")
        assert "name a command" in guestnet.fails(2, "exec", "box", "")
        assert "Permission" in guestnet.fails(126, "exec", "box", "/etc/passwd")
        assert Path("/etc/resolv.conf").read_text() == outside
        assert guestnet.json("ls")[0]["guest"] == "box"
        guestnet.ok("detach", "box")
    guestnet.fails(4, "exec", "box", "true")
    guestnet.ok("attach", "vm-1", "--network", "ci")
    assert "has a TAP" in guestnet.fails(2, "exec", "vm-1", "true")


@pytest.mark.root
@pytest.mark.parametrize("target", ["elsewhere", "none-such"])
def test_exec_where_resolv_conf_is_a_link(guestnet: Instance, tmp_path: Path, target: str) -> None:
    """In a mount namespace of the test's own, whose /etc/resolv.conf is such a link."""
    (tmp_path / "elsewhere").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "resolv.conf").symlink_to(tmp_path / target)
    (tmp_path / "etc" / "hosts").touch()
    script = f'mount --bind {tmp_path}/etc /etc && exec "$@"'
    with Namespace("guest") as guest:
        guestnet.ok("network", "create", "ci", "--dns", "9.9.9.9")
        guestnet.ok("attach", "box", "--network", "ci", "--netns", guest.name)
        command = [sys.executable, "-m", "guestnet.cli", f"--run-dir={guestnet.run_dir}", "exec"]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *command, "box", "cat", "/etc/resolv.conf"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env=BARE,
        )
        assert (done.stderr, done.returncode) == ("", 0)
        assert done.stdout.splitlines()[1:] == ["nameserver 9.9.9.9"]
        guestnet.ok("detach", "box")
    assert (tmp_path / "elsewhere").read_text() == "nameserver 192.0.2.1\n"
    assert sorted(os.listdir(tmp_path / "etc")) == ["hosts", "resolv.conf"]


ATTACHMENT = {"guest": "vm-1", "ipv4": "10.80.0.2/30", "ipv6": None, "dns": ["::1", "9.9.9.9"]}


def test_resolvers_of_a_family_that_the_guest_lacks_are_left_out() -> None:
    assert resolv_conf(ATTACHMENT).splitlines()[1:] == ["nameserver 9.9.9.9"]


@pytest.mark.parametrize("guest", ["a\n1.2.3.4 evil", "a b", "localhost", "-a", "ü", "a..b"])
def test_an_id_that_is_no_name_is_not_in_the_hosts_file(guest: str) -> None:
    lines = hosts({**ATTACHMENT, "guest": guest}, "machine").splitlines()
    assert lines[2:] == ["10.80.0.2 machine"]


# -- transports ------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_transport_from_attach_to_detach(guestnet: Instance, tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    made = guestnet.json("attach", "vm-1", "--transport", f"stream:{path}")
    assert made["transport"] == f"stream:{path}"
    assert f"server=off,addr.type=unix,addr.path={path}" in guestnet.ok(
        "show", "vm-1", "--format", "qemu"
    )
    assert "krun_add_net_unixstream" in guestnet.ok("show", "vm-1", "--format", "libkrun")
    shown = guestnet.json("show", "vm-1")["transport_state"]
    assert (shown["transport"], shown["malformed"], shown["problem"]) == (f"stream:{path}", 0, "")
    told = guestnet.ok("show", "vm-1")
    assert f"transport   stream:{path}" in told
    assert "connected" in told
    assert "attached with transport=" in guestnet.fails(3, "attach", "vm-1")
    said = guestnet.fails(2, "attach", "vm-2", "--transport", f"qemu-stream:{path}")
    assert "did you mean 'stream'?" in said
    assert f"{path} exists" in guestnet.fails(3, "attach", "vm-2", "--transport", f"dgram:{path}")
    assert [each["guest"] for each in guestnet.json("ls")] == ["vm-1"]
    guestnet.ok("detach", "vm-1")
    assert not path.exists()
    plain = guestnet.json("attach", "vm-1")
    assert plain["transport"] is None
    assert "transport_state" not in guestnet.json("show", "vm-1")


@pytest.mark.root
def test_with_tap(guestnet: Instance, tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    made = guestnet.json("attach", "vm-1", "--transport", f"tap-fd:{path}", "--queues", "2")
    said = guestnet.ok("with-tap", str(path), "--", "echo", "{tap}", "{mac}", "{fds}")
    tap, mac, fds = said.split()
    assert (tap, mac, len(fds.split(":"))) == (made["tap"], made["mac"], 2)
    guestnet.ok("detach", "vm-1")
    assert "connect" in guestnet.fails(7, "with-tap", str(path), "--", "true")
