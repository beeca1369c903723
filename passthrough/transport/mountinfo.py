"""What is mounted, by /proc/self/mountinfo (proc_pid_mountinfo(5)): reading it never touches a mounted file system."""

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

_MOUNTINFO = "/proc/self/mountinfo"
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount. device is "major:minor"; point and source are paths as the kernel tells them, unescaped."""

    id: int
    parent: int
    device: str
    root: str
    point: str
    options: str
    fstype: str
    source: str
    super_options: str

    @property
    def is_fuse(self) -> bool:
        """Whether a FUSE daemon serves it."""
        return self.fstype in ("fuse", "fuseblk") or self.fstype.startswith(("fuse.", "fuseblk."))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def mounts() -> Iterator[Mount]:
    """All mounts of this namespace, in the order of mounting: of several on one point the last is on top."""
    with open(_MOUNTINFO, encoding=sys.getfilesystemencoding(), errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            ident, parent, device, root, point, options = left.split(" ")[:6]
            fstype, source, super_options = right.split(" ", 2)
            yield Mount(
                int(ident),
                int(parent),
                device,
                _unescape(root),
                _unescape(point),
                options,
                fstype,
                _unescape(source),
                super_options,
            )


def top_mount(point: str) -> Mount | None:
    """The mount that a path leads to when it is a mount point, or None."""
    found = None
    for mount in mounts():
        if mount.point == point:
            found = mount
    return found


def mount_by_id(ident: int) -> Mount | None:
    """The mount with this id, or None once it is gone."""
    return next((mount for mount in mounts() if mount.id == ident), None)
