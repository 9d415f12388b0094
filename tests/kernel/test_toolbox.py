"""Policy by name under the tools that people use, each the real one: what is allowed works without
delay, all else is refused quickly, and the decision says why.

The policy of the first part is what an owner would write; that of the second is made of what a
session in report mode was seen to do.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect as connect_websocket

from guestnet.host import Host
from guestnet.model import Attachment
from lab.addresses import FORBIDDEN, RESOLVER
from lab.workshop import GREETING, HTTP2, HTTPS, PACKAGE, PROJECT, SMTP, WEBSOCKET
from lab.world import World
from stage import AT_ONCE_S, Guest, Stage, at_once

pytestmark = pytest.mark.root

#: For tools that start an interpreter or three.
PATIENCE_S = 30.0
FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
POLICY = "allow@*.example.test:443+8443+9443,allow@*.example.test:tcp:22+25,allow@*.pkg.test:443"
WEB, MAIL, PACKAGES = 0, 1, 2
NETWORKS = ("plain", "synthetic")


class Toolbox(Guest):
    """A guest with the whole machine's tools, and the workshops that they talk to.

    Each tool is run as people run it. Names lead to one family each.
    """

    def __init__(self, stage: Workplace, attachment: Attachment, namespace: Any) -> None:
        super().__init__(stage, attachment, namespace)
        self.host, self.workshops, self.scratch = stage.host, stage.workshops, stage.scratch
        self._numbers = itertools.count()

    def run(self, *argv: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """A command in the guest, whatever becomes of it; nothing of the machine's own settings."""
        environment = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.scratch),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSL_CAINFO": str(self.authority),
            "PIP_CONFIG_FILE": "/dev/null",
        }
        return self.namespace.run(argv, check=False, timeout_s=PATIENCE_S, env=environment, **how)

    def new_directory(self) -> Path:
        return self.scratch / f"{self.id}-{next(self._numbers)}"

    def fetch(self, url: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Also says the HTTP version, and after how many seconds the response began."""
        said = r"\n%{http_version} %{time_starttransfer} %{time_total}"
        argv = ["curl", "-sS", "-m", "20", "--cacert", str(self.authority), "-w", said]
        return self.run(*argv, *more, url)

    def ssh(self, version: int, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        shop = self.workshops[version]
        options = ["BatchMode=yes", f"UserKnownHostsFile={shop.known_hosts}", "ConnectTimeout=20"]
        argv = ["ssh", "-F", "none", "-i", str(shop.key), *more]
        argv += [word for option in options for word in ("-o", option)]
        return self.run(*argv, f"root@{name}", "echo", "from", "there")

    def git(self, name: str) -> subprocess.CompletedProcess[str]:
        return self.run(
            "git", "clone", "-q", f"https://{name}/{PROJECT}", str(self.new_directory())
        )

    def pip(self, name: str) -> subprocess.CompletedProcess[str]:
        return self.run(
            *(sys.executable, "-m", "pip", "install", "--no-input", "--no-cache-dir", "--no-deps"),
            *("--retries", "0", "--disable-pip-version-check", "--root-user-action", "ignore"),
            *("--cert", str(self.authority), "--index-url", f"https://{name}/simple/"),
            *("--target", str(self.new_directory()), PACKAGE),
        )

    def websocket(self, version: int, name: str) -> None:
        """Three messages there and back."""
        (address,) = self.addresses(name, "A" if version == 4 else "AAAA")
        context = ssl.create_default_context(cafile=self.authority)
        stream = self.connect(ip_address(address), WEBSOCKET)
        with connect_websocket(
            f"wss://{name}/", sock=stream, ssl=context, server_hostname=name, proxy=None
        ) as connection:
            for message in ("one", b"two", os.urandom(100_000)):
                connection.send(message)
                assert connection.recv(PATIENCE_S) == message

    def datagram(self, version: int, timeout_s: float = PATIENCE_S) -> bytes:
        """What comes back of the first flight of something like QUIC, in its usual size."""
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        with self.namespace.enter():
            door = socket.socket(family, socket.SOCK_DGRAM)
        with door:
            door.settimeout(timeout_s)
            door.sendto(b"\xc0" + bytes(1199), (str(self.workshops[version].address), HTTPS))
            return door.recv(2000)


class Workplace(Stage):
    """A stage with workshops, on which guests bring their tools."""

    def __init__(self, world: World, host: Host, scratch: Path) -> None:
        super().__init__(world, host, world.lie())
        self.scratch = scratch
        self.workshops = world.open_workshops()

    @contextlib.contextmanager
    def toolbox(self, policy: str, network: str = "plain") -> Iterator[Toolbox]:
        """A guest whose tools can read the lab's certificates and keep their files."""
        with self.guest(policy, network) as guest:
            yield Toolbox(self, guest.attachment, guest.namespace)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    scratch = tmp_path_factory.mktemp("toolbox")
    with World() as world, Host.open(scratch / "state", site=world.site.path) as host:
        for number, name in enumerate(NETWORKS):
            pools = {"ipv4": f"172.{20 + number}.0.0/16", "ipv6": f"fd42:6d73:{number}::/48"}
            resolvers = [str(a) for a in RESOLVER.addresses]
            synthetic = name == "synthetic"
            host.create_network({"name": name, "dns": resolvers, "synthetic": synthetic, **pools})
        made = Workplace(world, host, scratch)
        with made.guest(POLICY):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


@pytest.fixture
def guest(stage: Workplace) -> Iterator[Toolbox]:
    """With the policy that an owner wrote."""
    with stage.toolbox(POLICY) as made:
        yield made


def done(result: subprocess.CompletedProcess[str]) -> str:
    """What a tool that succeeded said."""
    assert result.returncode == 0, result.stderr
    return result.stdout


def failed(result: subprocess.CompletedProcess[str]) -> str:
    """What a tool that failed complained of."""
    assert result.returncode != 0, result.stdout
    return result.stderr


def assert_explained(guest: Toolbox, name: str, port: int) -> None:
    verdict = guest.host.explain(guest.id, "tcp", name, port)
    assert (verdict.allowed, verdict.text) == (False, "default_egress=deny")


def transfer(said: str) -> tuple[str, str, float]:
    """The page that curl fetched, the HTTP version, and after how many seconds it began."""
    page, _, told = said.rpartition("\n")
    protocol, began_s, _total_s = told.split()
    return page, protocol, float(began_s)


# -- what is allowed works, without delay ------------------------------------------------------


@FAMILIES
def test_curl_https(guest: Toolbox, version: int) -> None:
    page, _, began_s = transfer(done(guest.fetch(f"https://tools{version}.example.test/")))
    assert page == "workshop\n"
    assert began_s < AT_ONCE_S
    flow = guest.decided(kind="flow", port=HTTPS, name=f"tools{version}.example.test")
    assert (flow.verdict, flow.rule_index) == ("allow", WEB)
    assert flow.address == guest.workshops[version].address


@FAMILIES
def test_curl_http2(guest: Toolbox, version: int) -> None:
    url = f"https://tools{version}.example.test:{HTTP2}/"
    page, protocol, began_s = transfer(done(guest.fetch(url, "--http2")))
    assert (page, protocol) == ("workshop\n", "2")
    assert began_s < AT_ONCE_S
    assert guest.decided(kind="flow", port=HTTP2).verdict == "allow"


@FAMILIES
def test_git_clone(guest: Toolbox, version: int) -> None:
    with at_once():
        done(guest.git(f"tools{version}.example.test"))
    flow = guest.decided(kind="flow", port=HTTPS, name=f"tools{version}.example.test")
    assert (flow.verdict, flow.rule_index) == ("allow", WEB)


@FAMILIES
def test_pip_install(guest: Toolbox, version: int) -> None:
    assert "Successfully installed" in done(guest.pip(f"index{version}.pkg.test"))
    flow = guest.decided(kind="flow", name=f"index{version}.pkg.test")
    assert (flow.verdict, flow.rule_index) == ("allow", PACKAGES)
    assert flow.duration_s < AT_ONCE_S


@FAMILIES
def test_ssh(guest: Toolbox, version: int) -> None:
    """Both sides speak at once, on a port whose clients are not waited for."""
    with at_once():
        assert done(guest.ssh(version, f"tools{version}.example.test")) == "from there\n"
    flow = guest.decided(kind="flow", port=22, name=f"tools{version}.example.test")
    assert (flow.verdict, flow.rule_index) == ("allow", MAIL)


@FAMILIES
def test_a_server_that_speaks_first(guest: Toolbox, version: int) -> None:
    """curl's SMTP says nothing before the greeting has come."""
    url = f"smtp://tools{version}.example.test:{SMTP}"
    with at_once():
        said = guest.fetch(url, "-v", "-X", "NOOP")
    assert f"< {GREETING}" in done(said) + said.stderr
    flow = guest.decided(kind="flow", port=SMTP, name=f"tools{version}.example.test")
    assert (flow.verdict, flow.rule_index) == ("allow", MAIL)


@FAMILIES
def test_a_websocket(guest: Toolbox, version: int) -> None:
    with at_once():
        guest.websocket(version, f"tools{version}.example.test")
    flow = guest.decided(kind="flow", port=WEBSOCKET, name=f"tools{version}.example.test")
    assert flow.bytes_down > 100_000


@FAMILIES
def test_a_datagram_like_quic_s(guest: Toolbox, version: int) -> None:
    guest.addresses(f"tools{version}.example.test", "A" if version == 4 else "AAAA")
    with at_once():
        assert len(guest.datagram(version)) == 1200


# -- everything else is refused, quickly, and says why -----------------------------------------


@FAMILIES
def test_another_name_of_the_same_server_does_not_exist(guest: Toolbox, version: int) -> None:
    """Each tool says so in its own words."""
    other = f"tools{version}.other.test"
    with at_once():
        assert "Could not resolve host" in failed(guest.fetch(f"https://{other}/"))
    with at_once():
        assert "Could not resolve host" in failed(guest.git(other))
    with at_once():
        assert "Name or service not known" in failed(guest.ssh(version, other))
    assert "No matching distribution" in failed(guest.pip(other))
    refusal = guest.decided(kind="dns", name=other)
    assert (refusal.verdict, refusal.rule) == ("deny", "default_egress=deny")
    assert f"`allow@{other}` would allow it" in refusal.reason


@FAMILIES
def test_another_name_at_the_address_of_an_allowed_one(guest: Toolbox, version: int) -> None:
    """The guest knows the address, and says the name only in its first bytes."""
    other, address = f"tools{version}.other.test", guest.workshops[version].address
    guest.addresses(f"tools{version}.example.test", "A" if version == 4 else "AAAA")
    shown = f"[{address}]" if version == 6 else str(address)
    for port, more in ((HTTPS, ()), (HTTP2, ("--http2",))):
        known = f"{other}:{port}:{shown}"
        with at_once():
            said = failed(guest.fetch(f"https://{other}:{port}/", "--resolve", known, *more))
        assert "reset by peer" in said
        refusal = guest.decided(kind="flow", name=other, port=port)
        assert (refusal.verdict, refusal.rule) == ("deny", "default_egress=deny")


@FAMILIES
def test_another_port_of_an_allowed_name(guest: Toolbox, version: int) -> None:
    """No rule by name is about it, so the kernel refuses by itself, and `explain` says why."""
    name = f"tools{version}.example.test"
    with at_once():
        failed(guest.fetch(f"http://{name}/"))
    with at_once():
        failed(guest.fetch(f"smtp://{name}:2525"))
    with at_once():
        failed(guest.ssh(version, name, "-p", "2222"))
    for port in (80, 2525, 2222):
        assert_explained(guest, name, port)


@FAMILIES
def test_an_address_that_no_name_led_to(guest: Toolbox, version: int) -> None:
    address = FORBIDDEN.addresses[version == 6]
    shown = f"[{address}]" if version == 6 else str(address)
    with at_once():
        assert "reset by peer" in failed(guest.fetch(f"https://{shown}/", "-k"))
    refusal = guest.decided(kind="flow", address=address)
    assert (refusal.verdict, refusal.rule) == ("deny", "default_egress=deny")
    assert f"the guest resolved no name to {address}" in refusal.reason


# -- report, suggest, enforce ------------------------------------------------------------------


def session(guest: Toolbox, *, datagrams: bool) -> None:
    """A working day: every tool, both families."""
    for version in (4, 6):
        name = f"tools{version}.example.test"
        done(guest.fetch(f"https://{name}/"))
        done(guest.fetch(f"https://{name}:{HTTP2}/", "--http2"))
        done(guest.git(name))
        done(guest.pip(f"index{version}.pkg.test"))
        done(guest.ssh(version, name))
        done(guest.fetch(f"smtp://{name}:{SMTP}", "-X", "NOOP"))
        guest.websocket(version, name)
        if datagrams:
            assert len(guest.datagram(version)) == 1200


@pytest.fixture(scope="module", params=NETWORKS)
def reported(request: pytest.FixtureRequest, stage: Workplace) -> Iterator[Toolbox]:
    """A guest that did its day's work in report mode."""
    with stage.toolbox("mode=report", request.param) as guest:
        session(guest, datagrams=request.param == "plain")
        yield guest


def test_what_a_session_used_is_what_the_suggestion_allows(
    stage: Workplace, reported: Toolbox
) -> None:
    network = reported.attachment.network
    suggested = stage.host.suggest_policy(reported.id)
    print(suggested)
    with stage.toolbox(suggested, network) as enforced:
        session(enforced, datagrams=network == "plain")
        assert enforced.decisions(verdict="deny") == []
        assert_the_rest_is_denied(enforced)


def test_the_suggestion_is_enforced_on_the_guest_that_was_seen(
    stage: Workplace, reported: Toolbox
) -> None:
    """Last, as it ends the reporting. What the guest was told before still stands."""
    suggested = stage.host.suggest_policy(reported.id, suffixes=True)
    print(suggested)
    stage.host.set_policy(reported.id, suggested)
    began = time.time()
    session(reported, datagrams=reported.attachment.network == "plain")
    assert [d for d in reported.decisions(verdict="deny") if d.time >= began] == []
    assert_the_rest_is_denied(reported)


def assert_the_rest_is_denied(guest: Toolbox) -> None:
    """Names and ports that no session used."""
    other = "tools4.other.test"
    assert "Could not resolve host" in failed(guest.git(other))
    assert guest.decided(kind="dns", name=other).rule == "default_egress=deny"
    failed(guest.fetch("http://tools4.example.test/"))
    assert_explained(guest, "tools4.example.test", 80)


# -- where each name has an address of its own -------------------------------------------------


def test_one_server_by_two_names_of_which_one_may_be_spoken_ssh_with(stage: Workplace) -> None:
    """Elsewhere the guest that knows both names is refused, as nobody knows which it means."""
    with stage.toolbox(POLICY, "synthetic") as guest:
        done(guest.pip("index4.pkg.test"))
        done(guest.ssh(4, "tools4.example.test"))
        assert guest.decisions(verdict="deny") == []
        failed(guest.ssh(4, "index4.pkg.test"))
        refusal = guest.decided(kind="flow", verdict="deny")
        assert (refusal.name, refusal.rule) == ("index4.pkg.test", "default_egress=deny")
