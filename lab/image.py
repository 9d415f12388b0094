"""The guest's kernel and initramfs, made once from two Debian packages and kept in the cache.

Nothing is installed: the packages are downloaded and taken apart, so this needs no root. The cache
is keyed by what goes in; a changed `init.sh` makes another image.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .cpio import Archive

#: Always depends on the current kernel package, whose name holds its version.
KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"

#: Loaded by init in this order: each needs those before it. IPv6 and AF_PACKET are built in.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_mmio",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "llc",
    "stp",
    "garp",
    "mrp",
    "8021q",
)

_DIRECTORIES = ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp")
INIT = Path(__file__).with_name("init.sh")


class ImageError(RuntimeError):
    """The image cannot be made; says what to do."""


@dataclass(frozen=True)
class Image:
    """What a VMM boots."""

    kernel: Path
    initramfs: Path


def image() -> Image:
    """The guest image, from the cache or made now (a download of 28 MB); raises `ImageError`."""
    root = cache.root()
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / "image.lock"):
        parts = root / "parts"
        if not parts.is_dir():
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                _fetch(Path(scratch))
                cache.publish(Path(scratch, "parts"), parts)
        initramfs = root / f"initramfs-{_key(parts)}"
        if not initramfs.is_file():
            partial = initramfs.with_suffix(".partial")
            partial.write_bytes(_initramfs(parts))
            partial.rename(initramfs)
    return Image(parts / "vmlinuz", initramfs)


def _key(parts: Path) -> str:
    """What the initramfs is made of: the packages' names and versions, init, and this file."""
    inputs = ((parts / "packages").read_bytes(), INIT.read_bytes(), Path(__file__).read_bytes())
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]


def _initramfs(parts: Path) -> bytes:
    archive = Archive()
    for directory in _DIRECTORIES:
        archive.directory(directory)
    # The kernel opens init's standard streams before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    archive.file("init", INIT.read_bytes(), executable=True)
    archive.file("bin/busybox", (parts / "busybox").read_bytes(), executable=True)
    applets = subprocess.run(
        [parts / "busybox", "--list"], capture_output=True, text=True, check=True
    )
    for applet in applets.stdout.split():
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    for module in MODULES:
        archive.file(f"lib/modules/{module}.ko", (parts / f"{module}.ko").read_bytes())
    archive.file("lib/modules/order", "".join(f"{module}\n" for module in MODULES).encode())
    return archive.finish()


def _fetch(scratch: Path) -> None:
    """Download both packages and put the wanted files of them into `scratch/parts`."""
    kernel_package = _kernel_package()
    _download(scratch, kernel_package, BUSYBOX_PACKAGE)
    tree, parts = scratch / "tree", scratch / "parts"
    parts.mkdir()
    packages = sorted(scratch.glob("*.deb"))
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(tree)])
    wanted = {f"{module}.ko": f"lib/modules/*/kernel/**/{module}.ko" for module in MODULES}
    wanted |= {"vmlinuz": "boot/vmlinuz-*", "busybox": "**/bin/busybox"}
    for name, pattern in wanted.items():
        found = next(tree.glob(pattern), None)
        if found is None:
            raise ImageError(f"{kernel_package} has no {pattern}: lab/image.py needs a look")
        found.rename(parts / name)
    (parts / "packages").write_text("".join(f"{package.name}\n" for package in packages))


def _kernel_package() -> str:
    result = _apt(["apt-cache", "depends", "--important", KERNEL_PACKAGE])
    for line in result.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise ImageError(f"apt knows no {KERNEL_PACKAGE}; run 'apt-get update' on a Debian 12 machine")


def _download(directory: Path, *packages: str) -> None:
    # Root would otherwise fetch as user _apt, who may not write here.
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages]
    _apt(command, directory)


def _apt(command: list[str], directory: Path | None = None) -> str:
    try:
        return _run(command, directory)
    except ImageError as error:
        raise ImageError(f"{error}\nIf apt's lists are old or missing: apt-get update") from None


def _run(command: list[str], directory: Path | None = None) -> str:
    try:
        result = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=600
        )
    except FileNotFoundError:
        raise ImageError(f"{command[0]} is missing: the image is made on Debian") from None
    if result.returncode:
        raise ImageError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the kernel frees the lock of one that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        made = image()
    except ImageError as problem:
        sys.exit(f"guest image: {problem}")
    print(f"guest image: {made.initramfs}")
