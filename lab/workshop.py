"""What developers' tools talk to, at one address: `python -m lab.workshop CONFIG`.

    22      sshd          OpenSSH's own; the key for it is `Workshop.key`
    25      SMTP          the server speaks first; it takes commands, and no mail
    443     HTTPS         /project.git (git's own http-backend), /simple/ (an index for pip)
    443     UDP           each datagram comes back
    8443    HTTP/2        nghttpd
    9443    WebSocket     over TLS; each message comes back

The process ends when its stdin does; sshd and nghttpd are processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Self

from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from . import processes
from .netns import Namespace

SSH, SMTP, HTTPS, HTTP2, WEBSOCKET = 22, 25, 443, 8443, 9443
#: Seconds for three programs to start on a loaded machine.
_START_TIMEOUT_S = 20.0
#: What git clones, and what pip installs.
PROJECT, PACKAGE = "project.git", "labtool"
GREETING = "220 workshop ESMTP"


class Workshop:
    """The processes, in a namespace that has the address already."""

    def __init__(
        self, namespace: Namespace, address: IPv4Address | IPv6Address, certificate: Path
    ) -> None:
        self.address = address
        self._directory = tempfile.TemporaryDirectory(prefix="gnlab-")
        self.home = Path(self._directory.name)
        #: A private key that sshd lets in, and the file that knows sshd's own.
        self.key, self.known_hosts = self.home / "key", self.home / "known_hosts"
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._furnish()
            config = {
                "address": str(address),
                "home": str(self.home / "web"),
                "certificate": str(certificate),
            }
            server = [sys.executable, "-m", "lab.workshop", json.dumps(config)]
            self._start(namespace, server, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            http2 = ["nghttpd", "-a", str(address), "-d", str(self.home / "web"), str(HTTP2)]
            self._start(namespace, [*http2, str(certificate), str(certificate)])
            # sshd wants an empty /run/sshd; `ip netns exec` gives it mounts of its own to have one.
            script = 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"'
            sshd = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e"]
            sshd += ["-f", str(self.home / "sshd_config")]
            self._start(namespace, ["sh", "-c", script, "sh", *sshd], stderr=subprocess.DEVNULL)
            self._wait(namespace)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes and remove their files; harmless when repeated."""
        for process in self._processes:
            processes.stop(process)
        self._directory.cleanup()

    def _start(self, namespace: Namespace, argv: list[str], **how: Any) -> None:
        how = {"stdout": subprocess.DEVNULL, **how}
        self._processes.append(namespace.popen(argv, cwd=Path(__file__).parents[1], **how))

    def _wait(self, namespace: Namespace) -> None:
        """Until each port answers."""
        stdout = self._processes[0].stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], _START_TIMEOUT_S)
        if not readable or stdout.readline() != b"ready\n":
            raise RuntimeError("the workshop did not open")
        deadline = time.monotonic() + _START_TIMEOUT_S
        for port in (SSH, HTTP2):
            while not _is_open(namespace, str(self.address), port):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"nobody answers at the workshop's port {port}")
                time.sleep(0.02)

    def _furnish(self) -> None:
        web = self.home / "web"
        index = web / "simple" / PACKAGE
        index.mkdir(parents=True)
        (web / "index.html").write_text("workshop\n")
        wheel = f"{PACKAGE}-1.0-py3-none-any.whl"
        _make_wheel(index / wheel)
        (index / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel}">{wheel}</a>')
        _make_repository(web / PROJECT)
        for name in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.home / name))
        host_key = (self.home / "host_key.pub").read_text()
        self.known_hosts.write_text(f"* {host_key}")
        (self.home / "sshd_config").write_text(
            f"ListenAddress {self.address}\n"
            f"HostKey {self.home}/host_key\n"
            f"AuthorizedKeysFile {self.home}/key.pub\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
            "UseDNS no\nPidFile none\n"
        )


def _make_wheel(path: Path) -> None:
    about = f"{PACKAGE}-1.0.dist-info"
    files = {
        f"{PACKAGE}.py": "ANSWER = 42\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def _make_repository(path: Path) -> None:
    tree = path.with_suffix(".tree")
    who = ["-c", "user.name=Lab", "-c", "user.email=lab@example.test"]
    _run("git", "init", "-q", "-b", "main", str(tree))
    (tree / "README").write_text("a project\n")
    _run("git", "-C", str(tree), "add", "README")
    _run("git", "-C", str(tree), *who, "commit", "-q", "-m", "Begin")
    _run("git", "clone", "-q", "--bare", str(tree), str(path))
    shutil.rmtree(tree)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _is_open(namespace: Namespace, address: str, port: int) -> bool:
    with namespace.enter(), contextlib.suppress(OSError):
        socket.create_connection((address, port), timeout=1).close()
        return True
    return False


# -- the process ---------------------------------------------------------------------------------


class _Web(SimpleHTTPRequestHandler):
    """Files, and git's own server as a CGI program (git-http-backend(1))."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith(f"/{PROJECT}"):
            self._git(b"")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self._git(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def _git(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        result = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            check=False,
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": self.directory,
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            },
        )
        head, _, content = result.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class _Smtp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(f"{GREETING}\r\n".encode())
        for line in self.rfile:
            verb = line.strip().upper()
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 workshop\r\n")
            if verb == b"QUIT":
                return


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, door = self.request
        door.sendto(data, self.client_address)


def _echo_messages(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def main(config: dict[str, str]) -> None:
    """Serve until stdin ends."""
    address = config["address"]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config["certificate"])

    class Tcp(socketserver.ThreadingTCPServer):
        address_family, allow_reuse_address, daemon_threads = family, True, True

    class Udp(socketserver.ThreadingUDPServer):
        address_family, daemon_threads = family, True

    class Https(ThreadingHTTPServer):
        address_family = family

        def finish_request(self, request: Any, client_address: Any) -> None:
            # In the connection's own thread: a client that is slow to shake hands delays nobody.
            with context.wrap_socket(request, server_side=True) as stream:
                super().finish_request(stream, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that breaks off is an ordinary end here."""

    def files(*arguments: Any) -> _Web:
        return _Web(*arguments, directory=config["home"])

    messages = socket.create_server((address, WEBSOCKET), family=family)
    servers: list[Callable[[], Any]] = [
        Tcp((address, SMTP), _Smtp).serve_forever,
        Udp((address, HTTPS), _Echo).serve_forever,
        Https((address, HTTPS), files).serve_forever,
        serve_websockets(_echo_messages, sock=messages, ssl=context).serve_forever,
    ]
    for serve in servers:
        threading.Thread(target=serve, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
