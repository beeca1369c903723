"""Making and undoing a FUSE mount: mount(2) where we may, fusermount3 where an ordinary user needs it.

The result is an open /dev/fuse descriptor that the kernel sends requests to. Errors are UserErrors: one line each.
fusermount3 hands the descriptor over a socket whose number it finds in _FUSE_COMMFD (libfuse's util/fusermount.c).
"""

import array
import contextlib
import errno
import logging
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass

from .. import exitcodes, syscalls
from ..errors import UserError
from . import mountinfo

log = logging.getLogger(__name__)

DEVICE = "/dev/fuse"
HELPER, OLD_HELPER = "fusermount3", "fusermount"

MOUNT_FLAGS: dict[str, int] = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "noatime": syscalls.MS_NOATIME,
}


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What is to be mounted. flags are names out of MOUNT_FLAGS; max_read in bytes, 0 for the kernel's choice."""

    mountpoint: str
    fsname: str
    subtype: str = "passthrough"
    flags: frozenset[str] = frozenset({"nosuid", "nodev"})
    allow_other: bool = False
    owner_only: bool = False  # with allow_other: the server lets in root and the one who mounted, nobody else
    default_permissions: bool = True
    max_read: int = 0
    nonempty: bool = False
    old_helper: bool = False  # whether libfuse 2's helper will do where fusermount3 is not there
    kind: int = stat.S_IFDIR  # of the mount's root, and so of what it is mounted on: S_IFREG for a file


@dataclass(slots=True)
class Mounted:
    """A mount of ours: the device descriptor, where it is, and what undoing it takes."""

    fd: int
    mountpoint: str
    by_helper: bool
    mount_id: int = 0
    device: str = ""

    def locate(self) -> None:
        """Learn the mount's id and device number, by which it is told from others on the same path."""
        found = mountinfo.top_mount(self.mountpoint)
        if found is not None and found.is_fuse:
            self.mount_id, self.device = found.id, found.device

    def is_there(self) -> bool:
        """Whether the mount is still in this namespace, whatever else was mounted since."""
        found = mountinfo.mount_by_id(self.mount_id)
        return found is not None and found.device == self.device

    def undo(self, *, lazy: bool = False, force: bool = False) -> bool:
        """Unmount; whether it is gone. An error is logged, and one that comes of force as such."""
        try:
            unmount(self.mountpoint, lazy=lazy, force=force)
        except (OSError, UserError) as error:
            # EINVAL: somebody else has just unmounted it; the table may show it for a moment yet
            gone = getattr(error, "errno", None) == errno.EINVAL or not self.is_there()
            log.log(logging.ERROR if force and not gone else logging.DEBUG, "unmount: %s", error)
            return gone
        return True


def may_mount() -> bool:
    """Whether mount(2) is ours to call: CAP_SYS_ADMIN in effect."""
    return bool(syscalls.effective_capabilities() >> syscalls.CAP_SYS_ADMIN & 1)


def check_mountpoint(path: str, source: str | None, *, nonempty: bool = False) -> str:
    """The mount point as an absolute path without symlinks, or a UserError that says what is wrong with it.

    source, which may be shown on itself, is the directory that will be shown, where it is one of this machine's.
    """
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError as error:
        raise _mountpoint_error(path, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(
            f"{path}: the mount point is no directory; name one, or create one with mkdir", exitcodes.MOUNTPOINT
        )
    if nonempty:
        return real
    mount = mountinfo.top_mount(real)
    if mount is not None:
        if is_dead(real):
            raise _dead_mount_error(path)
        raise UserError(
            f"{path}: already a mount point ({mount.fstype} from {mount.source}); unmount it first: "
            f"umount {shlex.quote(path)}; or mount on top of it: -o nonempty",
            exitcodes.MOUNTPOINT,
        )
    if (source is None or not os.path.samefile(real, source)) and not _is_empty(real):
        raise UserError(
            f"{path}: the directory is not empty, and a mount would hide what is in it; "
            "choose an empty one, or say that it is meant: -o nonempty",
            exitcodes.MOUNTPOINT,
        )
    return real


def check_file(path: str) -> str:
    """The same for a mount on a regular file: one mount there, and no second one."""
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError as error:
        if error.errno == errno.ENOENT:
            line = f"{path}: the file to mount on does not exist; create an empty one: touch {shlex.quote(path)}"
            raise UserError(line, exitcodes.MOUNTPOINT) from error
        raise _mountpoint_error(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"{path}: is no regular file; an image is mounted on an ordinary file, which may be empty: touch a new one",
            exitcodes.MOUNTPOINT,
        )
    mount = mountinfo.top_mount(real)
    if mount is not None:
        if is_dead(real):
            raise _dead_mount_error(path)
        raise UserError(
            f"{path}: {os.strerror(errno.EEXIST)}: something is exported there already ({mount.source}); "
            f"end that first: passthrough umount {shlex.quote(path)}",
            exitcodes.MOUNTPOINT,
        )
    return real


def _mountpoint_error(path: str, error: OSError) -> UserError:
    if error.errno == errno.ENOENT and os.path.islink(path):
        return UserError(
            f"{path}: the mount point is a symlink to what does not exist; name a directory", exitcodes.MOUNTPOINT
        )
    if error.errno == errno.ENOENT:
        return UserError(
            f"{path}: the mount point does not exist; create it: mkdir -p {shlex.quote(path)}", exitcodes.MOUNTPOINT
        )
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return _dead_mount_error(path)
    return UserError(f"{path}: cannot use the mount point: {error.strerror}", exitcodes.MOUNTPOINT)


def _dead_mount_error(path: str) -> UserError:
    return UserError(
        f"{path}: a dead mount is in the way, its daemon is gone; clear it: passthrough umount {shlex.quote(path)}",
        exitcodes.MOUNTPOINT,
    )


def is_dead(mountpoint: str) -> bool:
    """Whether nobody serves the mount there any more. Asked by statfs(2), which no cache answers, unlike stat(2)."""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _is_empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except PermissionError:
        return True  # not ours to see; mount(2) or fusermount3 decides


def _no_device() -> UserError:
    return UserError(f"{DEVICE} is missing: load the module (modprobe fuse)", exitcodes.NO_DEVICE)


def open_device() -> int:
    """A fresh descriptor of /dev/fuse."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _no_device() from error
    except OSError as error:
        raise UserError(f"{DEVICE}: {error.strerror}; as root: chmod 0666 {DEVICE}", exitcodes.NO_DEVICE) from error


def mount(request: MountRequest) -> Mounted:
    """Make the mount, by mount(2) or through fusermount3."""
    mounted = _mount_directly(request) if may_mount() else _mount_by_helper(request)
    mounted.locate()
    return mounted


def _mount_directly(request: MountRequest) -> Mounted:
    fd = open_device()
    words = [f"fd={fd}", f"rootmode={request.kind:o}", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
    words += [name for name in ("default_permissions", "allow_other") if getattr(request, name)]
    if request.max_read:
        words.append(f"max_read={request.max_read}")
    flags = 0
    for name in request.flags:
        flags |= MOUNT_FLAGS[name]
    kind = f"fuse.{request.subtype}" if request.subtype else "fuse"
    try:
        syscalls.mount(
            os.fsencode(request.fsname), os.fsencode(request.mountpoint), kind.encode(), flags, ",".join(words).encode()
        )
    except OSError as error:
        os.close(fd)
        raise _mount_error(request, error) from error
    return Mounted(fd, request.mountpoint, by_helper=False)


def _mount_error(request: MountRequest, error: OSError) -> UserError:
    if error.errno == errno.ENODEV:
        return UserError("the kernel has no FUSE: load the module (modprobe fuse)", exitcodes.KERNEL)
    if error.errno in (errno.EPERM, errno.EACCES):
        return UserError(f"{request.mountpoint}: not allowed to mount here: {error.strerror}", exitcodes.PERMISSION)
    return UserError(f"{request.mountpoint}: mount failed: {error.strerror}", exitcodes.MOUNT_FAILED)


def helper_path() -> str | None:
    """Where fusermount3 is, or None."""
    return _found(HELPER)


def old_helper_path() -> str | None:
    """Where libfuse 2's helper is, or None. It takes the same options, and hands the descriptor over likewise."""
    return _found(OLD_HELPER)


def _found(helper: str) -> str | None:
    return shutil.which(helper) or shutil.which(helper, path="/usr/bin:/bin")


def _mount_by_helper(request: MountRequest) -> Mounted:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [_need_helper(old=request.old_helper), "-o", _helper_options(request), "--", request.mountpoint]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    with ours:
        fd = _receive_descriptor(ours)
    _, errors = process.communicate()
    if fd is None:
        raise _helper_error(request, errors.decode(errors="replace"))
    return Mounted(fd, request.mountpoint, by_helper=True)


def _need_helper(*, old: bool = False) -> str:
    path = helper_path() or (old_helper_path() if old else None)
    if path is None:
        raise UserError(
            "an ordinary user mounts through fusermount3, which is not installed: apt install fuse3",
            exitcodes.NO_HELPER,
        )
    return path


def _helper_options(request: MountRequest) -> str:
    words = sorted(request.flags)
    words += [name for name in ("default_permissions", "allow_other") if getattr(request, name)]
    if request.max_read:
        words.append(f"max_read={request.max_read}")
    words.append("fsname=" + _escape(request.fsname))
    if request.subtype:
        words.append("subtype=" + _escape(request.subtype))
    return ",".join(words)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _receive_descriptor(channel: socket.socket) -> int | None:
    size = array.array("i").itemsize
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fd = int.from_bytes(data[:size], "little")
            os.set_inheritable(fd, False)
            return fd
    return None


def _helper_error(request: MountRequest, text: str) -> UserError:
    line = _said(text) or "no reason given"
    point = re.escape(" ".join(request.mountpoint.split()))
    known = re.sub(rf"(?<!\S){point}(?=[\s:]|$)", "", line)  # a path may hold any word
    if "allow_other" in known:
        return UserError("allow_other needs the line user_allow_other in /etc/fuse.conf", exitcodes.PERMISSION)
    if "fuse device not found" in known:
        return _no_device()
    if DEVICE in known:
        why = line.removeprefix(f"failed to open {DEVICE}: ")
        return UserError(f"{DEVICE}: {why}; as root: chmod 0666 {DEVICE}", exitcodes.NO_DEVICE)
    if any(word in known for word in ("ermission", "user has no write access", "not permitted")):
        own = "file" if stat.S_ISREG(request.kind) else "directory"
        why = f"{request.mountpoint}: not allowed to mount here: {line}; it must be a {own} that this user may write"
        return UserError(why, exitcodes.PERMISSION)
    return UserError(f"{request.mountpoint}: mount failed: {line}", exitcodes.MOUNT_FAILED)


def _said(text: str) -> str:
    """What fusermount3 said, on one line and without its own name, which is the path that it was called by."""
    return re.sub(r"(?<!\S)\S*fusermount3?: ", "", " ".join(text.split()))


def unmount(mountpoint: str, *, lazy: bool = False, force: bool = False) -> None:
    """umount2(2), or fusermount3 -u. lazy detaches at once and ends when the last user does; force aborts as well.

    OSError EBUSY where it is in use, EINVAL where nothing is mounted; UserError where fusermount3 refuses.
    """
    flags = syscalls.UMOUNT_NOFOLLOW
    flags |= syscalls.MNT_DETACH if lazy else 0
    flags |= syscalls.MNT_FORCE if force else 0
    if may_mount():
        syscalls.umount2(os.fsencode(mountpoint), flags)
        return
    command = [_need_helper(old=True), "-u", *(["-z"] if lazy else []), "--", mountpoint]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode:
        line = _said(result.stderr.decode(errors="replace"))
        if "busy" in line:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), mountpoint)
        if "not found" in line:  # what fusermount3 says of a mount that is not this user's
            why = "this user has not mounted it; whoever has, or root, may unmount it"
            raise UserError(f"{mountpoint}: {why}", exitcodes.PERMISSION)
        raise UserError(f"{mountpoint}: {line or 'fusermount3 failed'}", exitcodes.PERMISSION)


def see_that_it_answers(mountpoint: str) -> None:
    """The starter's last look; UserError, and no mount, where the daemon does not serve."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        with contextlib.suppress(OSError, UserError):
            unmount(mountpoint, lazy=True, force=True)
        raise UserError(f"{mountpoint}: the mount does not answer: {error.strerror}", exitcodes.SERVING) from error
