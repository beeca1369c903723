"""A passthrough file system as it is usually written in Python: paths, one dictionary, the llfuse binding.

    /usr/bin/python3 -m bench.llfuse_peer SOURCE MOUNTPOINT

Debian's python3-llfuse ships no examples, so this does what llfuse's own passthrough example is known for: an inode is
remembered as its path, every answer comes from lstat on that path, names and attributes are believed for five seconds,
readdir brings attributes along, one worker.  Unlike it, each open has its descriptor and I/O is positional: no peer is
made slower than it must be.  It runs alone, on the system's Python; nothing of the bench is imported.
"""

import errno
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import llfuse  # type: ignore[import-not-found]
from llfuse import FUSEError

TIMEOUT_SECONDS = 5
COPIED = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size")
TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")


class Passthrough(llfuse.Operations):  # type: ignore[misc]
    """The requests that the bench's rows make, and a few more; what each must do, llfuse says."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._paths = {llfuse.ROOT_INODE: os.fsencode(source)}
        self._lookups: dict[int, int] = defaultdict(int)

    def _below(self, parent: int, name: bytes) -> bytes:
        return self._paths[parent] + b"/" + name

    def _attributes(self, path: bytes) -> Any:
        try:
            found = os.lstat(path)
        except OSError as error:
            raise FUSEError(error.errno) from None
        entry = llfuse.EntryAttributes()
        for name in COPIED + TIMES:
            setattr(entry, name, getattr(found, name))
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = TIMEOUT_SECONDS
        entry.st_blksize = 512
        entry.st_blocks = (entry.st_size + 511) // 512
        return entry

    def _remember(self, path: bytes) -> Any:
        entry = self._attributes(path)
        if path != self._paths[llfuse.ROOT_INODE]:
            self._paths[entry.st_ino] = path
            self._lookups[entry.st_ino] += 1
        return entry

    def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        return self._remember(self._below(parent, name))

    def forget(self, inode_list: list[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            self._lookups[inode] -= count
            if self._lookups[inode] <= 0:
                del self._lookups[inode]
                self._paths.pop(inode, None)

    def getattr(self, inode: int, ctx: Any = None) -> Any:
        entry = self._attributes(self._paths[inode])
        if inode == llfuse.ROOT_INODE:
            entry.st_ino = inode
        return entry

    def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        path = self._paths[inode]
        try:
            if fields.update_size:
                os.truncate(path if fh is None else fh, attr.st_size)
            if fields.update_mode:
                os.chmod(path, attr.st_mode & 0o7777)
            if fields.update_uid or fields.update_gid:
                uid, gid = attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1
                os.chown(path, uid, gid, follow_symlinks=False)
            if fields.update_atime or fields.update_mtime:
                old = os.lstat(path)
                atime = attr.st_atime_ns if fields.update_atime else old.st_atime_ns
                mtime = attr.st_mtime_ns if fields.update_mtime else old.st_mtime_ns
                os.utime(path, ns=(atime, mtime), follow_symlinks=False)
        except OSError as error:
            raise FUSEError(error.errno) from None
        return self.getattr(inode)

    def readlink(self, inode: int, ctx: Any) -> bytes:
        return os.readlink(self._paths[inode])

    def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    def readdir(self, inode: int, off: int) -> Iterator[tuple[bytes, Any, int]]:
        path = self._paths[inode]
        entries = sorted((os.lstat(path + b"/" + name).st_ino, name) for name in os.listdir(path))
        for number, name in entries:
            if number > off:
                yield name, self._attributes(path + b"/" + name), number

    def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
        path = self._below(parent, name)
        try:
            os.mkdir(path, mode & ~ctx.umask)
            os.chown(path, ctx.uid, ctx.gid)
        except OSError as error:
            raise FUSEError(error.errno) from None
        return self._remember(path)

    def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> Any:
        path = self._below(parent, name)
        try:
            os.symlink(target, path)
            os.chown(path, ctx.uid, ctx.gid, follow_symlinks=False)
        except OSError as error:
            raise FUSEError(error.errno) from None
        return self._remember(path)

    def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        self._call(os.unlink, self._below(parent, name))

    def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        self._call(os.rmdir, self._below(parent, name))

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            raise FUSEError(error.errno) from None

    def rename(self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, ctx: Any) -> None:
        old, new = self._below(parent_old, name_old), self._below(parent_new, name_new)
        self._call(os.rename, old, new)
        inode = os.lstat(new).st_ino
        if inode in self._paths:
            self._paths[inode] = new

    def open(self, inode: int, flags: int, ctx: Any) -> int:
        descriptor: int = self._call(os.open, self._paths[inode], flags & ~os.O_DIRECT)
        return descriptor

    def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[int, Any]:
        path = self._below(parent, name)
        descriptor = self._call(os.open, path, flags & ~os.O_DIRECT | os.O_CREAT | os.O_TRUNC, mode & ~ctx.umask)
        os.fchown(descriptor, ctx.uid, ctx.gid)
        return descriptor, self._remember(path)

    def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.pwrite(fh, buf, off)

    def fsync(self, fh: int, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)

    def release(self, fh: int) -> None:
        os.close(fh)

    def statfs(self, ctx: Any) -> Any:
        found = os.statvfs(self._paths[llfuse.ROOT_INODE])
        answer = llfuse.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, name, getattr(found, name))
        return answer

    def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        raise FUSEError(errno.ENOSYS)  # the kernel asks once

    def access(self, inode: int, mode: int, ctx: Any) -> bool:
        return True


def main(source: str, mountpoint: str) -> None:
    """Serve until unmounted."""
    options = {*llfuse.default_options, "fsname=llfuse_peer"}
    llfuse.init(Passthrough(source), mountpoint, options)
    try:
        llfuse.main(workers=1)
    finally:
        llfuse.close(unmount=False)


if __name__ == "__main__":
    main(*sys.argv[1:3])
