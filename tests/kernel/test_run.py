"""`guestnet run` as an ordinary user, whose machine is the lab's site."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from guestnet.cli.launcher import Launcher
from lab import processes
from lab.addresses import ALLOWED, FORBIDDEN, PRIVATE, SITE_IPV4, SITE_IPV6, Server
from lab.internet import Servers
from lab.waiting import eventually
from runs import (
    BOTH,
    CURL,
    HOME,
    NAME,
    PATIENCE_S,
    Stage,
    as_root,
    find,
    left,
    running,
    tree,
    url,
)

pytestmark = pytest.mark.root
pytest_plugins = ("runs",)


# -- a program's network -----------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_allowed_name_is_one_line(stage: Stage, scheme: str, version: int) -> None:
    authority = stage.user.home / "authority.pem"
    shutil.copy(stage.world.certificates.authority, authority)
    curl = (*CURL, f"-{version}", "--cacert", str(authority), f"{scheme}://{NAME}/")
    done, told = stage.told("--allow", NAME, "--", *curl)
    assert done.returncode == 0, done.stderr
    page = json.loads(done.stdout)
    # It comes from the machine's own address, as any program's of this user.
    assert page["server"] == "allowed"
    assert page["client"] == str(SITE_IPV4.ip if version == 4 else SITE_IPV6.ip)
    (flow,) = (line for line in told["decisions"] if line["kind"] == "flow")
    assert (flow["verdict"], flow["name"], flow["count"]) == ("allow", NAME, 1)
    assert flow["bytes_down"] > 0


def test_a_name_that_is_not_allowed_does_not_exist(stage: Stage) -> None:
    done, told = stage.told("--allow", NAME, "--", *CURL, f"http://{FORBIDDEN.name}/")
    assert done.returncode == 6  # CURLE_COULDNT_RESOLVE_HOST
    assert {(d["verdict"], d["kind"], d["name"]) for d in told["decisions"]} == {
        ("deny", "dns", FORBIDDEN.name)
    }
    assert stage.world.arrivals(FORBIDDEN) == []


@BOTH
def test_an_address_is_refused_at_once_and_told_with_its_rule(stage: Stage, version: int) -> None:
    done, told = stage.told("--allow", NAME, "--", *CURL, url(FORBIDDEN, version))
    assert done.returncode in (7, 56)  # could not connect, connection reset
    (line,) = told["decisions"]
    assert (line["verdict"], line["rule"]) == ("deny", "default_egress=deny")
    assert line["address"] == str(getattr(FORBIDDEN, f"ipv{version}"))
    assert stage.world.arrivals(FORBIDDEN) == []


def test_nothing_given_is_nothing_allowed(stage: Stage) -> None:
    assert stage.run("--", *CURL, f"http://{NAME}/").returncode != 0
    assert stage.run("--", *CURL, url(ALLOWED, 4)).returncode != 0
    assert stage.world.arrivals() == []


def test_a_policy_may_be_a_file(stage: Stage) -> None:
    file = stage.user.home / "policy"
    file.write_text(f"# what the tool needs\nallow@{NAME}:80\n")
    assert stage.run("--policy", str(file), "--", *CURL, f"http://{NAME}/").returncode == 0
    assert stage.run("--policy", "allow@nonsense", "--", "true").returncode == 2
    for missing in ("/no/such", "./other", "other.txt"):
        done = stage.run("--policy", missing, "--", "true")
        assert done.returncode == 2
        assert done.stderr == f"guestnet: policy='{missing}': No such file or directory\n"


def test_a_report_suggests_the_policy(stage: Stage) -> None:
    done, told = stage.told("--report", "--", *CURL, f"http://{NAME}/")
    assert done.returncode == 0, done.stderr
    assert told["policy"] == f"allow@{NAME}:tcp:80"
    again, told = stage.told("--policy", told["policy"], "--", *CURL, f"http://{NAME}/")
    assert again.returncode == 0
    assert all(line["verdict"] == "allow" for line in told["decisions"])


def test_the_summary_for_people(stage: Stage) -> None:
    script = f"curl -s http://{NAME}/; curl -s http://{FORBIDDEN.name}/; true"
    done = stage.run("--allow", NAME, "--", "sh", "-c", script)
    allowed, *denied = done.stderr.splitlines()
    assert f"allowed     1x  tcp   {NAME}:80 (" in allowed
    assert f"by `allow@{NAME}`" in allowed
    assert "DENIED" in denied[0]
    assert FORBIDDEN.name in denied[0]


def test_a_namespace_guest_from_nothing_and_back(stage: Stage) -> None:
    """In one run: what is allowed in both families, what is not, and all of it told."""
    script = (
        "getent ahosts $0 | cut -d' ' -f1 | sort -u; "
        "for v in 4 6; do curl -$v -sS -m 30 http://$0/ || exit; done; "
        'for target in "$@"; do curl -g -sS -m 30 $target && exit 1; done; true'
    )
    refused = [f"http://{FORBIDDEN.name}/", *(url(FORBIDDEN, version) for version in (4, 6))]
    done, told = stage.told("--allow", NAME, "--", "sh", "-c", script, NAME, *refused)
    assert done.returncode == 0, done.stderr
    *addresses, fourth, sixth = done.stdout.splitlines()
    assert set(addresses) == {str(address) for address in ALLOWED.addresses}
    assert [json.loads(page)["server"] for page in (fourth, sixth)] == ["allowed"] * 2
    seen = {(d["verdict"], d["kind"], d["address"] or d["name"]) for d in told["decisions"]}
    for address in ALLOWED.addresses:
        assert ("allow", "flow", str(address)) in seen
    for peer in FORBIDDEN.addresses:
        assert ("deny", "flow", str(peer)) in seen
    assert ("deny", "dns", FORBIDDEN.name) in seen
    assert stage.world.arrivals(FORBIDDEN) == []


@BOTH
def test_rules_by_address_are_relayed_as_well(stage: Stage, version: int) -> None:
    policy = f"allow@dns,allow@{ALLOWED.ipv4}:tcp:80,allow@[{ALLOWED.ipv6}]:tcp:80"
    for target in (url(ALLOWED, version), f"http://{NAME}/"):
        done = stage.run("--policy", policy, "--", *CURL, f"-{version}", target)
        assert json.loads(done.stdout)["server"] == "allowed", done.stderr
    refused, told = stage.told(
        "--policy", policy, "--", *CURL, f"-{version}", url(PRIVATE, version)
    )
    assert refused.returncode in (7, 56)
    assert told["decisions"][-1]["rule"] == "default_egress=deny"
    assert stage.world.arrivals(PRIVATE) == []


@BOTH
def test_datagrams_and_pings(stage: Stage, version: int) -> None:
    address = str(getattr(ALLOWED, f"ipv{version}"))
    stage.world.site.sysctl("ipv4.ping_group_range", f"{stage.user.uid} {stage.user.uid}")
    policy = "allow@public:udp:7,allow@public:icmpv4+icmpv6"
    ping = ("ping", "-c", "1", "-W", str(PATIENCE_S), address)
    done = stage.run("--policy", policy, "--", *ping)
    assert done.returncode == 0, done.stdout + done.stderr
    echo = (
        "import socket, sys; "
        "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, "
        "socket.SOCK_DGRAM); s.settimeout(30); s.connect((sys.argv[1], 7)); s.send(b'hello'); "
        "print(s.recv(9))"
    )
    done = stage.run("--policy", policy, "--", sys.executable, "-c", echo, address)
    assert done.stdout == "b'hello'\n", done.stderr


def test_what_a_program_sends_is_not_paced(stage: Stage) -> None:
    """It goes to the gateway, on the same machine; whatever the machine's default is (BBR)."""
    done = stage.run("--", "cat", "/proc/sys/net/ipv4/tcp_congestion_control")
    assert done.stdout == "reno\n", done.stderr


# -- the floor: the user's own machine ----------------------------------------------------------


@BOTH
@pytest.mark.parametrize("policy", ["all", "public,private", "allow@any"])
def test_the_machine_itself_is_out_of_reach(stage: Stage, policy: str, version: int) -> None:
    """By its address, by its loopback's, and by the gateway's."""
    gateway = "{gateway}" if version == 4 else "[{gateway6}]"
    mapped = "[::ffff:127.0.0.1]" if version == 6 else "127.0.0.1"
    targets = [url(HOME, version), f"http://{gateway}/", f"http://{mapped}/"]
    for target in targets:
        done = stage.run("--policy", policy, "--", *CURL, "-g", target)
        assert done.returncode in (7, 56), (target, done.stdout, done.stderr)
    assert stage.home.arrivals() == []


@BOTH
def test_the_machine_is_reached_by_a_rule_that_names_it(stage: Stage, version: int) -> None:
    """By its own address, and by the name that every guest finds it under."""
    for target in (url(HOME, version), "http://host.guestnet.internal/"):
        done = stage.run("--policy", "allow@host:tcp:80", "--", *CURL, f"-{version}", target)
        assert json.loads(done.stdout)["server"] == "home", done.stderr
    # Its loopback is not among what it is reached at.
    mine = "[::1]" if version == 6 else "127.0.0.1"
    assert stage.run("--policy", "allow@host", "--", *CURL, f"http://{mine}/").returncode == 7


def test_a_name_of_the_machine_itself_does_not_exist(stage: Stage) -> None:
    for name in ("to-site.example.test", "to-loopback.example.test"):
        assert stage.run("--allow", name, "--", *CURL, f"http://{name}/").returncode == 6
    assert stage.home.arrivals() == []


@BOTH
def test_an_address_that_the_machine_got_a_moment_ago(stage: Stage, version: int) -> None:
    """Before anybody told the gateway of it."""
    script = f"echo up; read line; curl -{version} -sS -m 5 http://{NAME}/"
    address = getattr(ALLOWED, f"ipv{version}")
    process = stage.popen(
        "--allow", NAME, "--", "sh", "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    stage.world.site.ip(f"address add {address}/{address.max_prefixlen} dev lo")
    try:
        here = Server("usurper", NAME, **{f"ipv{version}": address})
        with Servers(stage.world.site, [here]) as usurper:
            out, _err = process.communicate(b"go\n", timeout=PATIENCE_S)
            assert usurper.arrivals() == []
    finally:
        process.kill()
        stage.world.site.ip(f"address del {address}/{address.max_prefixlen} dev lo")
    assert process.returncode != 0
    assert out == b""


# -- the program and its surroundings ------------------------------------------------------------


def test_it_is_still_the_same_user_with_the_same_files(stage: Stage) -> None:
    (stage.user.home / "file").write_text("mine\n")
    script = "id -u; id -g; cat file; touch made; grep CapEff /proc/self/status"
    done = stage.run("--", "sh", "-c", script)
    uid = str(stage.user.uid)
    assert done.stdout.split() == [uid, uid, "mine", "CapEff:", "0" * 16]
    assert (stage.user.home / "made").stat().st_uid == stage.user.uid


def test_it_has_no_way_into_the_site(stage: Stage) -> None:
    """It may have every right in a user namespace of its own, and none over those above."""
    with running(stage, "--allow", NAME, "--", "sleep", "1000") as run:
        agent = find(stage, "rootless.agent", below=run.pid)
        enter = f"nsenter -t {agent} -U --preserve-credentials -n true"
        assert stage.user.run(["sh", "-c", enter]).returncode == 0  # the user outside may
    inside = "for n in /proc/[0-9]*; do nsenter --net=$n/ns/net true 2>/dev/null && echo $n; done"
    done = stage.run("--", "unshare", "-Ur", "sh", "-c", inside)
    assert done.stdout == ""
    done = stage.run("--", "unshare", "-Ur", "ip", "link", "set", "eth0", "address", "02::1")
    assert done.returncode != 0


def test_its_status_is_ours(stage: Stage) -> None:
    assert stage.run("--", "sh", "-c", "exit 7").returncode == 7
    assert stage.run("--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    assert stage.run("--", "no-such-command").returncode == 127
    assert stage.run("--", "/").returncode == 126
    assert stage.run("--", "").returncode == 2
    assert stage.run("--", "sh", "-c", "cat; exit 0").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_goes_on_to_it(stage: Stage, number: signal.Signals) -> None:
    with running(stage, "--", "sh", "-c", "echo up; exec sleep 1000") as run:
        run.send_signal(number)
        assert run.wait(PATIENCE_S) == 128 + number


def test_a_signal_that_it_handles_is_its_own_matter(stage: Stage) -> None:
    script = "trap 'echo heard; exit 3' USR1; echo up; while :; do sleep 0.1; done"
    with running(stage, "--", "sh", "-c", script) as run:
        run.send_signal(signal.SIGUSR1)
        out, _err = run.communicate(timeout=PATIENCE_S)
        assert (run.returncode, out) == (3, b"heard\n")


def test_what_it_leaves_in_the_background_ends_with_it(stage: Stage) -> None:
    done = stage.run("--", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0")
    assert done.returncode == 0
    assert not stage.user.processes()


# -- the end, however it comes ---------------------------------------------------------------------


@pytest.mark.parametrize("word", ["guestnet.cli", "rootless.agent", "cli.launch", "sleep", "init"])
def test_kill_9_leaves_nothing(stage: Stage, word: str) -> None:
    with running(stage, "--allow", NAME, "--", "sleep", "1000") as run:
        launch = eventually(lambda: find(stage, "guestnet.cli.launch", below=run.pid))
        if word == "guestnet.cli":
            victim = run.pid
        elif word == "cli.launch":
            victim = min(processes.children(run.pid) & set(tree(stage, "guestnet.cli.launch")))
        elif word == "init":
            victim = max(tree(stage, "guestnet.cli.launch"))
        else:
            victim = eventually(lambda: find(stage, word, below=run.pid))
        assert launch
        os.kill(victim, signal.SIGKILL)
        _out, err = run.communicate(timeout=PATIENCE_S)
        eventually(lambda: not stage.user.processes())
        assert run.returncode != 0
        if word == "rootless.agent":
            assert run.returncode == 7
            assert f"pid {victim} was killed (SIGKILL)" in err.decode()


def test_a_killed_gateway_is_followed_by_another(stage: Stage) -> None:
    script = f"echo up; read line; until curl -sm 5 http://{NAME}/; do sleep 0.2; done"
    process = stage.popen(
        "--allow", NAME, "--", "sh", "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    first = eventually(lambda: find(stage, "guestnet.gateway", below=process.pid))
    os.kill(first, signal.SIGKILL)
    out, said = process.communicate(b"go\n", timeout=PATIENCE_S)
    assert process.returncode == 0
    assert json.loads(out)["server"] == "allowed"
    assert all(line.startswith(b"guestnet: ") for line in said.splitlines())


def test_what_starts_the_command_is_killed_before_it_is_told() -> None:
    """Whoever waits for it sees that, as at any other time."""
    with Launcher() as launcher:
        launcher.kill()
        os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
        launcher.tell({"argv": ["true"]})
        assert launcher.poll() == -signal.SIGKILL


# -- root, in the machine's own namespace ------------------------------------------------------


def test_root_s_guests_are_forwarded(stage: Stage) -> None:
    process = as_root(stage, "--allow", str(ALLOWED.ipv4), "--", *CURL, url(ALLOWED, 4),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _err = process.communicate(timeout=PATIENCE_S)
    assert json.loads(out)["client"] == str(SITE_IPV4.ip)
    assert left(stage) == ""
    assert stage.world.site.sysctl("ipv4.ip_forward") == "0"


@BOTH
def test_what_the_kernel_refuses_root_s_guest_is_told(stage: Stage, version: int) -> None:
    process = as_root(stage, "--json", "--", *CURL, url(FORBIDDEN, version), stderr=subprocess.PIPE)
    _out, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7  # refused at once
    (line,) = json.loads(said.splitlines()[-1])["decisions"]
    assert (line["verdict"], line["rule"]) == ("deny", "default_egress=deny")
    assert line["address"] == str(getattr(FORBIDDEN, f"ipv{version}"))


def test_who_has_root_s_namespace_is_said_once_with_the_way_round(stage: Stage) -> None:
    first = as_root(stage, "--", "sh", "-c", "echo up; exec sleep 1000", stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"up\n"
    stands = left(stage)
    second = as_root(stage, "--", "true", stderr=subprocess.PIPE)
    _out, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 6
    assert said.count(b"is held by pid") == 1
    assert b"run --rootless" in said
    assert left(stage) == stands
    beside = as_root(stage, "--rootless", "--", "true")
    assert beside.wait(PATIENCE_S) == 0
    first.terminate()
    first.wait(PATIENCE_S)
    assert left(stage) == ""


@pytest.mark.parametrize("whom", ["parent", "child"])
def test_kill_9_leaves_nothing_of_root_s(stage: Stage, whom: str) -> None:
    process = as_root(stage, "--allow", NAME, "--", "sh", "-c", "echo up; exec sleep 1000",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert "inet guestnet" in left(stage)
    (child,) = processes.children(process.pid)
    os.kill(process.pid if whom == "parent" else child, signal.SIGKILL)
    process.wait(PATIENCE_S)
    eventually(lambda: left(stage) == "")


def test_words_are_replaced_and_other_braces_are_not(stage: Stage) -> None:
    words = ["{ipv4}", "x{gateway}y", "{ipv6}", "{gateway6}", "{other}", '{"a":1}', "{}"]
    done = stage.run("--", "printf", r"%s\n", *words)
    assert done.stdout.split() == [
        "172.16.0.2/30", "x172.16.0.1y", "fd42:6d73:62::2/64", "fd42:6d73:62::1",
        "{other}", '{"a":1}', "{}",
    ]  # fmt: skip
