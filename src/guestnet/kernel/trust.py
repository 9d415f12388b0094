"""Whom the machine trusts: the certificates of the authorities that OpenSSL looks up."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import HostError

#: What OpenSSL itself looks for in a directory: the hash of a subject, and a number.
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")


class TrustStore:
    """The system's store, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name in its place."""

    def __init__(self) -> None:
        self._seen: tuple[object, ...] = ()
        self._text = ""

    def read(self) -> str:
        """All certificates in PEM, read anew if the store has changed.

        Raises `HostError` if there is none: then no certificate could be verified.
        """
        # For resolvers over TLS alone: whoever has none does not wait for it.
        import ssl

        paths = ssl.get_default_verify_paths()
        place = paths.cafile or paths.capath
        try:
            if place is None:
                raise FileNotFoundError(2, os.strerror(2), paths.openssl_capath)
            stat = os.stat(place)
            seen = (place, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen != self._seen:
                self._text = _read(Path(place))
                self._seen = seen
        except OSError as error:
            hint = "install ca-certificates, or set SSL_CERT_FILE to a file of the daemon's"
            name = str(error.filename or paths.openssl_cafile)
            raise HostError.from_os("reading certificates", name, error, hint) from None
        return self._text


def _read(place: Path) -> str:
    files = [place]
    if place.is_dir():
        files = sorted(each for each in place.iterdir() if _HASHED.fullmatch(each.name))
    return "\n".join(each.read_text("ascii", "ignore") for each in files)
