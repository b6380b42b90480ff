"""File systems: bytes and inodes, of local disks, of network file systems, and of ``/dev/shm``.

Mounts are read from ``/proc/1/mounts``, so that an agent in a container with the host's ``/proc`` sees those of the
host; it looks at them below ``agent.rootfs``. A file system that is mounted in several places counts once. One that
does not answer, as NFS without its server, is left out and told of, and holds nobody up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from streammon_agents.host.patience import Patience
from streammon_agents.kernel_files import File
from streammon_agents.source import Measured

MOST = 200
"""File systems looked at; those with the shortest mount points."""

_IMAGES = frozenset({"squashfs", "iso9660", "erofs", "cramfs"})
"""File systems that are files, read-only and always full."""
_REMOTE = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "orangefs",
    "smb3", "smbfs", "virtiofs", "wekafs",
    "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mountpoint-s3", "fuse.s3fs", "fuse.sshfs",
})  # fmt: skip
_OTHERS = frozenset({"zfs", "bcachefs", "btrfs"})
"""On disks, though the kernel lists them, or some versions of it, as without a device."""
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, not written to


class Mount(NamedTuple):
    device: str
    path: str
    kind: str
    read_only: bool

    @property
    def is_remote(self) -> bool:
        return self.kind in _REMOTE


class Usage(NamedTuple):
    """Of ``statvfs``; ``free`` is what others than root may have."""

    total_bytes: int
    unused_bytes: int
    free_bytes: int
    inodes: int
    free_inodes: int


Reading = Mapping[str, tuple[Mount, Usage]]


def parse_mounts(text: str) -> list[Mount]:
    """``/dev/vda / ext4 rw,relatime 0 0``; in names, blanks and others are octal: ``\\040``."""
    rows = (line.split(" ") for line in text.splitlines())
    return [
        Mount(_plain(row[0]), _plain(row[1]), row[2], "ro" in row[3].split(","))
        for row in rows
        if len(row) >= 4 and row[1].startswith("/")
    ]


_ESCAPES: Final = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\043": "#", "\\134": "\\"}


def _plain(name: str) -> str:
    if "\\" in name:
        for escape, character in _ESCAPES.items():
            name = name.replace(escape, character)
    return name


def parse_kinds(text: str) -> frozenset[str]:
    """File systems on devices, of ``/proc/filesystems``."""
    return frozenset(line.strip() for line in text.splitlines() if line[:1].isspace() and line.strip())


def watched(mounts: list[Mount], kinds: frozenset[str]) -> list[Mount]:
    """The shortest mount point of every real device, and ``/`` even where it is a container's overlay."""
    chosen: dict[str, Mount] = {}
    real = (kinds | _REMOTE | _OTHERS) - _IMAGES
    visible = {mount.path: mount for mount in mounts}  # of those in one place the last
    for mount in sorted(visible.values(), key=lambda mount: len(mount.path)):
        if mount.path in ("/", _SHARED_MEMORY):
            chosen.setdefault(f"mounted on {mount.path}", mount)
        if mount.kind in real and all(mount.device != one.device for one in chosen.values()):
            chosen.setdefault(mount.device, mount)
    by_path = {mount.path: mount for mount in reversed(chosen.values())}
    return sorted(by_path.values(), key=lambda mount: (mount.is_remote, len(mount.path), mount.path))[:MOST]


class FileSystems:
    """Reads them all; ``hanging`` are those that do not answer."""

    def __init__(self, procfs: str, rootfs: str, patience: Patience | None = None) -> None:
        self._mounts = (File(f"{procfs}/1/mounts"), File(f"{procfs}/self/mounts"))
        self._kinds = File(f"{procfs}/filesystems")
        self._root = rootfs.rstrip("/")
        self._patience = patience or Patience("file systems")
        self._seen: tuple[bytes, list[Mount]] = b"", []

    @property
    def hanging(self) -> list[str]:
        return self._patience.hanging

    def mounts(self) -> list[Mount]:
        """Those that are looked at. Raises OSError where nobody knows them."""
        data = self._mounts[0].read_or_none() or self._mounts[1].read()
        if data != self._seen[0]:
            kinds = parse_kinds((self._kinds.read_or_none() or b"").decode(errors="replace"))
            self._seen = data, watched(parse_mounts(data.decode(errors="surrogateescape")), kinds)
        return self._seen[1]

    def read(self) -> Reading:
        mounts = {mount.path: mount for mount in self.mounts()}
        usages = self._patience.ask({path: lambda path=path: self._usage(path) for path in mounts})  # type: ignore[misc]
        return {path: (mounts[path], usage) for path, usage in usages.items()}

    def _usage(self, path: str) -> Usage:
        vfs = os.statvfs(self._root + path)
        size = vfs.f_frsize
        return Usage(vfs.f_blocks * size, vfs.f_bfree * size, vfs.f_bavail * size, vfs.f_files, vfs.f_ffree)


def measure(now: Reading, before: object, elapsed_s: float) -> Iterator[Measured]:
    """``free_bytes`` and ``utilization`` leave out the blocks reserved for root, as ``df`` does."""
    for path, (mount, usage) in now.items():
        if usage.total_bytes > 0:
            yield Measured("filesystem", path.encode(errors="replace").decode(), _sizes(mount, usage))


def _sizes(mount: Mount, usage: Usage) -> dict[str, float]:
    used = usage.total_bytes - usage.unused_bytes
    metrics: dict[str, float] = {
        "total_bytes": usage.total_bytes,
        "used_bytes": used,
        "free_bytes": usage.free_bytes,
        "utilization": used / ((used + usage.free_bytes) or usage.total_bytes),
        "read_only": float(mount.read_only),
    }
    if usage.inodes > 0:  # some have no number of inodes that could run out
        metrics |= {
            "inodes": usage.inodes,
            "free_inodes": usage.free_inodes,
            "inodes_utilization": 1 - usage.free_inodes / usage.inodes,
        }
    return metrics
