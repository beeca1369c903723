"""What the process sees of the file system: the share as /, and of /proc nothing but its own descriptors.

The share is cloned as a detached tree and becomes the root by pivot_root, so that no path leads out of it; the old root
goes. A path that leads to another directory than the one that was opened before is refused.

The descriptor of /proc/self/fd lies on a detached mount of its own, whose root is that directory: `..` does not lead
out of it. It becomes the working directory, for calls that take paths alone.
"""

import errno
import os
import tempfile

from . import syscalls as s
from .plan import Plan, Step

_MOUNT_CAUSE = "no CAP_SYS_ADMIN, or a container's seccomp or AppArmor profile forbids mounts"
_PROC_CAUSE = "a container that hides parts of /proc lets no user namespace mount it (try chroot or landlock)"
_PIVOT_CAUSE = "the root of this machine is an initramfs, or a container forbids pivot_root"


class Share:
    """The directory (None: an empty one), and the descriptors that the steps leave: `root` and `proc`."""

    def __init__(self, path: str | None, opened: int | None, *, readonly: bool, slave: bool) -> None:
        """path is absolute and without symlinks; opened is a descriptor of the directory, by which it is recognised."""
        self.path = path
        self.root = -1
        self.proc = -1
        self._readonly = readonly
        self._slave = slave
        self._tree = -1
        status = os.fstat(opened) if opened is not None else None
        self._identity = (status.st_dev, status.st_ino) if status else None
        top = os.stat("/")
        self._is_root = self._identity == (top.st_dev, top.st_ino) and path == "/"

    # By namespaces

    def namespace_plan(self) -> Plan:
        """In a mount namespace of our own."""
        kind = "slaves" if self._slave else "private"
        steps = [
            Step(f"make all mounts {kind}", self._propagation, _MOUNT_CAUSE),
            Step("mount a fresh /proc and keep self/fd of it alone", self._fresh_proc, _PROC_CAUSE),
        ]
        said = self.path or "an empty directory"
        kept = "nosuid, nodev, read-only" if self._readonly else "nosuid, nodev"
        if self._is_root:
            steps.append(Step(f"leave / as it is, being the share, {kept}", self._restrict_root, _MOUNT_CAUSE))
        elif self.path is None:
            steps.append(Step("make an empty read-only directory", self._empty, _MOUNT_CAUSE))
            steps.append(Step("make it the root (pivot_root), and detach the old root", self._pivot, _PIVOT_CAUSE))
        else:
            steps.append(Step(f"clone the mounts of {said}, {kept}", self._clone, _MOUNT_CAUSE))
            steps.append(Step("make it the root (pivot_root), and detach the old root", self._pivot, _PIVOT_CAUSE))
        return [*steps, self._settle_step()]

    def _propagation(self) -> None:
        s.mount("none", "/", "", s.MS_REC | (s.MS_SLAVE if self._slave else s.MS_PRIVATE))

    def _fresh_proc(self) -> None:
        s.mount("proc", "/proc", "proc", s.MS_NOSUID | s.MS_NODEV | s.MS_NOEXEC)
        self._clone_proc()
        s.umount2("/proc", s.MNT_DETACH)

    def _clone_proc(self) -> None:
        """/proc/self/fd of this process, as the root of a mount that is nowhere."""
        try:
            self.proc = s.open_tree("/proc/self/fd", s.OPEN_TREE_CLONE)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            s.mount("/proc/self/fd", "/proc", "", s.MS_BIND)  # Linux before 5.2
            self.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            s.umount2("/proc", s.MNT_DETACH)

    def _clone(self) -> None:
        assert self.path is not None
        try:
            self._tree = s.open_tree(self.path, s.OPEN_TREE_CLONE | s.AT_RECURSIVE)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            s.mount(self.path, self.path, "", s.MS_BIND | s.MS_REC)
            self._recognise(os.stat(self.path))
            flags = s.MS_NOSUID | s.MS_NODEV | (s.MS_RDONLY if self._readonly else 0)
            s.mount("none", self.path, "", s.MS_REMOUNT | s.MS_BIND | flags)
            return
        self._recognise(os.fstat(self._tree))
        self._restrict(self._tree, "", s.AT_EMPTY_PATH)
        s.move_mount(self._tree, self.path)

    def _recognise(self, found: os.stat_result) -> None:
        if self._identity not in (None, (found.st_dev, found.st_ino)):
            raise FileNotFoundError(errno.ENOENT, f"{self.path} is no longer the directory that was opened")

    def _restrict(self, fd: int, path: str, flags: int) -> None:
        attributes = s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV | (s.MOUNT_ATTR_RDONLY if self._readonly else 0)
        try:
            s.mount_setattr(fd, path, flags | s.AT_RECURSIVE, attributes)
        except OSError as error:
            if error.errno != errno.ENOSYS or self._readonly:
                raise

    def _restrict_root(self) -> None:
        self._restrict(s.AT_FDCWD, "/", 0)

    def _empty(self) -> None:
        self.path = "/proc"  # it is always there, and is to go
        flags = s.MS_NOSUID | s.MS_NODEV | s.MS_NOEXEC
        s.mount("none", self.path, "tmpfs", flags, "size=4k,nr_inodes=1,mode=555")
        s.mount("none", self.path, "", flags | s.MS_REMOUNT | s.MS_RDONLY)

    def _pivot(self) -> None:
        assert self.path is not None
        os.chdir(self.path)
        s.pivot_root(".", ".")
        s.umount2(".", s.MNT_DETACH)  # what was pushed below: the old root
        if self._tree >= 0:
            os.close(self._tree)
        os.chdir("/")

    # By chroot

    def chroot_plan(self) -> Plan:
        """Root only, where namespaces are forbidden."""
        said = self.path or "an empty directory"
        return [
            Step("keep /proc/self/fd", self._keep_proc, "no /proc is mounted"),
            Step("put it on a mount of its own, from which .. leads nowhere", self._detach_proc, _MOUNT_CAUSE, False),
            Step(f"make {said} the root (chroot)", self._chroot, "no CAP_SYS_CHROOT: chroot is for root"),
            self._settle_step(),
        ]

    def _keep_proc(self) -> None:
        self.proc = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _detach_proc(self) -> None:
        detached = s.open_tree("/proc/self/fd", s.OPEN_TREE_CLONE)
        os.close(self.proc)
        self.proc = detached

    def _chroot(self) -> None:
        if self.path is None:
            os.chdir(_vanished_directory())
        else:
            os.chdir(self.path)
            self._recognise(os.stat("."))
        os.chroot(".")
        os.chdir("/")

    # Both

    def _settle_step(self) -> Step:
        return Step("open the new root; work in /proc/self/fd", self._settle)

    def _settle(self) -> None:
        self.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchdir(self.proc)


def _vanished_directory() -> int:
    """A descriptor of an empty directory that has no name any more."""
    path = tempfile.mkdtemp()
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.rmdir(path)
    return fd
