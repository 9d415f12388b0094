"""An initramfs archive in the "newc" format (the kernel's early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat


class Archive:
    """Files, directories, links and devices, in the order in which they were added."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._inode = 0

    def directory(self, path: str) -> None:
        """An empty directory; parents come first."""
        self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """A regular file."""
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """A character device node."""
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._entry("TRAILER!!!", 0)
        return bytes(self._out)

    def _entry(
        self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), its own device (2), name, checksum
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        self._out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._pad()
        self._out += data
        self._pad()

    def _pad(self) -> None:
        self._out += bytes(-len(self._out) % 4)
