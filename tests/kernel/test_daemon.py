"""The daemon on a real kernel: its API, its socket, its start and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestnet import errors
from guestnet.client import Client, Guestnet, connect
from guestnet.daemon.faults import fault
from guestnet.daemon.limits import MAX_BODY_BYTES
from guestnet.host import Host
from guestnet.model import AttachRequest, NetworkSpec
from guestnet.policy import Action, Group
from lab import processes
from lab.netns import Namespace

pytestmark = pytest.mark.root

#: Ids that a path, a shell, a URL or a terminal would take for something else.
HOSTILE = (
    *("../x", "..", ".", "/", "//", "a;reboot", "a\nb", "a\r\nX: y", "a%2Fb", "a%00b", "?", "#"),
    *("a&id=b", "a+b", "a b", " ", "'", '"', "-rf", "--json", "[red]x", "\x1b[31m", "\u202eabc"),
    *("ünïcode-Ω-漢", "🦊", "\ufffd", "x" * 255, "ä" * 127, "null", "{}", "a=b", "%", "%zz", ";"),
)


class Daemon:
    """A daemon process in a namespace, on directories of a test."""

    def __init__(self, site: Namespace, directory: Path, **environ: str) -> None:
        self.run_dir = directory / "run"
        self.state_dir = directory / "state"
        self.process = site.popen(
            [
                *(sys.executable, "-m", "guestnet.daemon"),
                *(f"--state-dir={self.state_dir}", f"--run-dir={self.run_dir}"),
            ],
            stderr=subprocess.PIPE,
            env={**os.environ, **environ},
        )

    @property
    def socket(self) -> Path:
        return self.run_dir / "guestnet.sock"

    def ready(self) -> Client:
        """A client, once the daemon serves."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return connect(self.run_dir)
            except errors.UnreachableError:
                assert self.process.poll() is None, self.said()
                assert time.monotonic() < deadline, "the daemon does not come up"
                time.sleep(0.02)

    def said(self) -> str:
        """What an ended daemon wrote."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def daemon(namespace: Namespace, tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(namespace, tmp_path)
    yield made
    processes.stop(made.process, patience_s=20)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.ready() as made:
        yield made


def test_host_and_client_are_one_interface(client: Client) -> None:
    def takes(either: Guestnet) -> Guestnet:
        return either

    def never(host: Host) -> Guestnet:
        return takes(host)  # what mypy checks

    assert takes(client) is client
    names = {name for name in vars(Guestnet) if not name.startswith("_")}
    # What concerns the process that it is in, no client has.
    here = {"open", "namespace", "watch_site"}
    assert names == {n for n in vars(Host) if not n.startswith("_")} - here


def test_a_guest_from_attach_to_detach(client: Client) -> None:
    network = client.create_network(
        NetworkSpec.read({"name": "ci", "ipv4": "10.80.0.0/24", "mtu": 1400})
    )
    assert client.networks() == [network] == [client.network("ci")]
    attachment = client.attach("vm-1", network="ci", policy="public")
    assert (str(attachment.ipv4), attachment.mtu) == ("10.80.0.2/30", 1400)
    assert client.attach("vm-1", network="ci", policy="public") == attachment
    assert client.attachments() == client.attachments("ci") == [client.attachment("vm-1")]
    assert client.usage("vm-1").refused == 0
    assert client.detach("vm-1", attachment.generation + 1) is False
    assert client.detach("vm-1") is True
    assert client.detach("vm-1") is False
    client.remove_network("ci")
    assert client.networks() == []


def test_asking(client: Client) -> None:
    client.attach("vm-1", policy="public")
    verdict = client.explain("vm-1", "tcp", "10.0.0.1", 443)
    assert (verdict.action, verdict.rule, verdict.group) == (Action.DENY, None, Group.PRIVATE)
    assert client.explain("vm-1", "tcp", "10.0.0.1", 22, direction="ingress").allowed is False
    assert client.reconcile().steps == ()
    client.follow()
    assert "inet/refused" in client.counters()
    assert {finding.check for finding in client.doctor()} > {"kernel", "ruleset"}


def test_hostile_guest_ids_stay_what_they_are(client: Client) -> None:
    for guest in HOSTILE:
        assert client.attach(guest).guest == guest
    assert {each.guest for each in client.attachments()} == set(HOSTILE)
    for guest in HOSTILE:
        assert client.attachment(guest).guest == guest
        assert client.usage(guest).guest == guest
        assert client.detach(guest) is True
    assert client.attachments() == []


@pytest.mark.parametrize("guest", ["", "x" * 256, "a\0b", "\udcff"])
def test_what_is_no_guest_id_is_refused_and_harms_nobody(client: Client, guest: str) -> None:
    client.attach("\ufffd")
    with pytest.raises(errors.ConfigError):
        client.attach(guest)
    with pytest.raises(errors.ConfigError):
        client.detach(guest)
    with pytest.raises(errors.ConfigError):
        client.attachment(guest)
    assert [each.guest for each in client.attachments()] == ["\ufffd"]


@pytest.mark.parametrize("name", ["none-such", "..", "a/b", "", "a b", "ü", "%2e%2e"])
def test_an_unknown_network_is_not_found_whatever_its_name(client: Client, name: str) -> None:
    with pytest.raises(errors.NotFoundError) as caught:
        client.network(name)
    assert caught.value.value == name
    with pytest.raises(errors.NotFoundError):
        client.remove_network(name)


def test_errors_are_the_same_by_http_and_in_process(client: Client, tmp_path: Path) -> None:
    def provoke(guestnet: Guestnet) -> Iterator[errors.GuestnetError]:
        small = {"name": "small", "ipv4": "10.80.0.0/30", "ipv6": None}
        guestnet.create_network(small)
        guestnet.attach("vm-1", network="small")
        for ask in (
            lambda: guestnet.create_network({**small, "ipv4": "10.81.0.0/30"}),
            lambda: guestnet.create_network({"name": "x", "ipv4": "10.0.0.1/16"}),
            lambda: guestnet.create_network({"name": "x", "nonsense": 1}),
            lambda: guestnet.remove_network("small"),
            lambda: guestnet.network("none"),
            lambda: guestnet.attachments("none"),
            lambda: guestnet.attachment("none"),
            lambda: guestnet.attach("vm-1", network="small", mac="02:00:00:00:00:09"),
            lambda: guestnet.attach("vm-2", network="small"),
            lambda: guestnet.attach("vm-2", policy="allow@dns,alow@any"),
            lambda: guestnet.attach("vm-2", mtu=3),
            lambda: guestnet.attach("vm-2", netns="/nowhere"),
            lambda: guestnet.explain("vm-1", "tcp", "no sense", 1),
            lambda: guestnet.explain("vm-1", "smtp", "1.1.1.1"),
        ):
            with pytest.raises(errors.GuestnetError) as caught:
                ask()
            yield caught.value

    with Namespace("other") as other, other.enter(), Host.open(tmp_path / "other") as host:
        there = list(provoke(host))
    here = list(provoke(client))
    for ours, its in zip(here, there, strict=True):
        assert type(ours) is type(its)
        assert str(ours) == str(its)
        assert fault(ours) == fault(its)
        assert ours.exit_code == its.exit_code


# -- the socket, and what comes in by it -----------------------------------------------------------


def raw(daemon: Daemon, request: bytes) -> tuple[int, dict[str, object]]:
    """The answer to bytes of our own making."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(daemon.socket))
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(request)
        response = http.client.HTTPResponse(sock)
        response.begin()
        return response.status, json.loads(response.read())


@pytest.mark.usefixtures("client")
def test_only_root_may_open_the_socket(daemon: Daemon) -> None:
    mode = daemon.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert (daemon.run_dir / "guestnet.pid").read_text() == f"{daemon.process.pid}\n"


@pytest.mark.usefixtures("client")
def test_whoever_may_not_is_told_who_may(daemon: Daemon) -> None:
    script = (
        "import os, sys, guestnet.client as c, guestnet.errors as e; os.setuid(65534)\n"
        "try: c.connect(sys.argv[1])\n"
        "except e.UnreachableError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(daemon.run_dir)],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert "EACCES" in done.stdout
    assert "the socket is for root, or the members of socket_group" in done.stdout


def test_the_socket_may_be_a_groups(namespace: Namespace, tmp_path: Path) -> None:
    daemon = Daemon(namespace, tmp_path, GUESTNET_SOCKET_GROUP="4711")
    daemon.ready().close()
    seen = daemon.socket.stat()
    assert (stat.S_IMODE(seen.st_mode), seen.st_gid) == (0o660, 4711)
    assert daemon.stop() == 0


@pytest.mark.usefixtures("client")
def test_a_body_that_is_too_large_is_refused(daemon: Daemon) -> None:
    head = b"POST /v1/guests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    announced = head + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
    assert raw(daemon, announced)[0] == 413
    chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    assert raw(daemon, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 9)[0] == 413


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("request_line", "status", "key"),
    [
        ("GET /v1/guest?id=%FF", 422, "query"),
        ("GET /v1/guest", 422, "id"),
        ("GET /v1/nothing", 404, "request"),
        ("PUT /v1/guests", 405, "request"),
        ("DELETE /v1/guest?id=a&generation=x", 422, "generation"),
        ("GET /v1/guest/format?id=a&format=nonsense", 422, "format"),
    ],
)
def test_a_request_that_cannot_be_is_told_why(
    daemon: Daemon, request_line: str, status: int, key: str
) -> None:
    got, said = raw(daemon, f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (got, said["key"]) == (status, key)


@pytest.mark.parametrize("body", ["", "{", "[]", "3", '{"guest": 3}', '{"guest": "a", "b": 1}'])
def test_a_body_that_cannot_be_is_the_callers_fault(client: Client, body: str) -> None:
    with pytest.raises(errors.ConfigError):
        client.api.request("POST", "/v1/guests", body=body.encode())


def test_the_api_describes_itself(client: Client) -> None:
    document = client.api.get("/v1/openapi.json")
    assert document["openapi"].startswith("3.")
    answers = document["paths"]["/v1/guests"]["post"]["responses"]
    assert answers["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Attachment")
    assert {"404", "409", "422", "507"} < set(answers)
    assert set(document["components"]["schemas"]["AttachRequest"]["properties"]) == set(
        AttachRequest.model_fields
    )


def test_threads_share_a_client(client: Client) -> None:
    def work(number: int) -> None:
        for turn in range(5):
            client.attach(f"vm-{number}-{turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = client.attachments()
    assert len(found) == 40 == len({each.ipv4 for each in found})


# -- its life --------------------------------------------------------------------------------------


def test_a_client_outlives_the_daemon(namespace: Namespace, tmp_path: Path) -> None:
    first = Daemon(namespace, tmp_path)
    client = first.ready()
    attachment = client.attach("vm-1")
    assert first.stop() == 0
    with pytest.raises(errors.UnreachableError, match="guestnet up") as caught:
        client.attachment("vm-1")
    assert caught.value.exit_code == 8
    second = Daemon(namespace, tmp_path)
    second.ready().close()
    assert client.attachment("vm-1") == attachment
    client.close()
    assert second.stop(signal.SIGINT) == 0
    assert list(second.run_dir.iterdir()) == []


def test_after_a_kill_the_next_one_takes_over(namespace: Namespace, tmp_path: Path) -> None:
    first = Daemon(namespace, tmp_path)
    with first.ready() as client:
        attachment = client.attach("vm-1", policy="public")
    first.stop(signal.SIGKILL)
    assert first.socket.exists()
    second = Daemon(namespace, tmp_path)
    with second.ready() as client:
        assert client.attachment("vm-1") == attachment
        assert client.reconcile().steps == ()
    assert second.stop() == 0


def test_a_socket_that_somebody_listens_on_is_left_alone(
    namespace: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "run" / "guestnet.sock"))
        listener.listen()
        daemon = Daemon(namespace, tmp_path)
        assert daemon.process.wait(20) == errors.BusyError.exit_code
        assert "is held by another process" in daemon.said()
    assert (tmp_path / "run" / "guestnet.sock").exists()


def test_a_run_directory_that_others_may_write_to_is_refused(
    namespace: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    daemon = Daemon(namespace, tmp_path)
    assert daemon.process.wait(20) == errors.ConfigError.exit_code
    assert "others may write here" in daemon.said()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(namespace: Namespace, tmp_path: Path, abstract: bool) -> None:
    name = f"guestnet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.ExitStack() as at:
        # Abstract addresses belong to the network namespace.
        if abstract:
            at.enter_context(namespace.enter())
            manager.close()
            manager = at.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(f"\0{name}" if abstract else str(tmp_path / "notify"))
        manager.settimeout(20)
        address = f"@{name}" if abstract else str(tmp_path / "notify")
        daemon = Daemon(namespace, tmp_path, NOTIFY_SOCKET=address)
        lines = manager.recv(4096).decode().splitlines()
        assert "READY=1" in lines
        assert f"MAINPID={daemon.process.pid}" in lines
        connect(daemon.run_dir).close()
        daemon.process.send_signal(signal.SIGTERM)
        assert manager.recv(4096) == b"STOPPING=1"
        assert daemon.process.wait(20) == 0


def test_networks_of_the_file_are_made(namespace: Namespace, tmp_path: Path) -> None:
    config = tmp_path / "guestnet.toml"
    config.write_text('[network.ci]\nipv4 = "10.80.0.0/16"\nipv6 = "none"\n')
    daemon = Daemon(namespace, tmp_path, GUESTNET_CONFIG=str(config))
    with daemon.ready() as client:
        assert [info.spec.name for info in client.networks()] == ["ci"]
    assert daemon.stop() == 0
