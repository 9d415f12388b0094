"""A certificate authority of the lab's own, and one leaf per server of its internet.

Made by the openssl command once and kept in the cache: the names never change, and nothing outside
the lab trusts them.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .addresses import Server
from .cache import publish, root

VALID_DAYS = 3650


class Certificates:
    """A directory with `ca.pem` and, per server label, `LABEL.pem` (certificate, then key)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def authority(self) -> Path:
        """The CA's certificate, for curl's `--cacert`."""
        return self.directory / "ca.pem"

    def leaf(self, label: str) -> Path:
        """Certificate and private key of one server, in one file."""
        return self.directory / f"{label}.pem"


def certificates(servers: Sequence[Server]) -> Certificates:
    """The certificates of these servers, made if the cache has none."""
    key = hashlib.sha256(repr(tuple(servers)).encode()).hexdigest()[:16]
    home = root() / f"certificates-{key}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            work = Path(scratch, "certificates")
            work.mkdir()
            _make(work, servers)
            publish(work, home)
    return Certificates(home)


def _make(directory: Path, servers: Sequence[Server]) -> None:
    authority_key = directory / "ca.key"
    common: list[str | Path] = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]
    common += ["-days", str(VALID_DAYS)]
    _openssl(
        *(*common, "-keyout", authority_key, "-out", directory / "ca.pem"),
        *("-subj", "/CN=guestnet lab CA"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    for server in servers:
        names = [f"DNS:{name}" for name in server.names]
        names += [f"IP:{address}" for address in server.addresses]
        key, certificate = directory / f"{server.label}.key", directory / f"{server.label}.crt"
        _openssl(
            *(*common, "-keyout", key, "-out", certificate),
            *("-CA", directory / "ca.pem", "-CAkey", authority_key),
            *("-subj", f"/CN={server.name}"),
            *("-addext", f"subjectAltName={','.join(names)}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", "extendedKeyUsage=serverAuth"),
        )
        (directory / f"{server.label}.pem").write_bytes(certificate.read_bytes() + key.read_bytes())


def _openssl(*arguments: str | Path) -> None:
    result = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {result.stderr.strip()}")
