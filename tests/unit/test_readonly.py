"""ReadOnly, before a file system that can do nothing: what it lets through is ENOSYS there, all else must be EROFS."""

import errno
import inspect
import os
from collections.abc import Iterator

import pytest

from passthrough.filesystem import FileSystem
from passthrough.fs.readonly import ReadOnly
from passthrough.fs.tree.ioctls import FS_IOC32_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS
from tests.unit.helpers import ME, raises

_READING = frozenset(
    "lookup getattr statx readlink access statfs open read flush release fsync lseek ioctl poll bmap opendir readdir"
    " readdirplus releasedir fsyncdir syncfs getxattr listxattr getlk setlk".split()
)
_SESSION = frozenset("init destroy will_cover close forget batch_forget".split())
_ALL = [name for name, _ in inspect.getmembers(FileSystem, inspect.isfunction) if not name.startswith("_")]


def _call(name: str, **named: object) -> None:
    method = getattr(ReadOnly(FileSystem()), name)
    parameters = list(inspect.signature(getattr(FileSystem, name)).parameters)[2:]  # without self and ctx
    found = method(ME, *(named.get(parameter, 0) for parameter in parameters))
    if isinstance(found, Iterator):
        next(found)


@pytest.mark.parametrize("name", sorted(set(_ALL) - _SESSION))
def test_every_request_reads_or_is_refused(name: str) -> None:
    with raises(errno.ENOSYS if name in _READING else errno.EROFS):
        _call(name)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_ACCMODE, os.O_RDONLY | os.O_TRUNC])
def test_opening_for_a_change_is_one(flags: int) -> None:
    with raises(errno.EROFS):
        _call("open", flags=flags)


@pytest.mark.parametrize("cmd", [FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR])
def test_setting_flags_is_a_change(cmd: int) -> None:
    with raises(errno.EROFS):
        _call("ioctl", cmd=cmd)
    with raises(errno.ENOSYS):
        _call("ioctl", cmd=FS_IOC_FSGETXATTR)
