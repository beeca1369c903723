"""What this kernel and this user can have: facts and remedies, gathered without changing anything. Prints nothing.

The FUSE version and features are what the kernel offers in INIT: a mount is made on a temporary directory, its first
request is read, and it is undone.
"""

import importlib.util
import os
import platform
import resource
import select
import shutil
import tempfile
from dataclasses import dataclass
from enum import Enum

from . import syscalls
from .compiled import is_compiled
from .errors import UserError
from .protocol import constants as c
from .protocol.negotiation import MINIMUM_MINOR, InitIn, read_init
from .transport import mounting
from .transport.llfuse import library

_PARAMETERS = "/sys/module/fuse/parameters"
_INIT_WAIT_MS = 5000
_FEW_DESCRIPTORS = 4096
_MACHINES = ("qemu-system-x86_64", "qemu-system-aarch64", "cloud-hypervisor")


class State(Enum):
    """OK: there. LIMITED: it works without, but less well. MISSING: mounting needs it."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. `name` is stable, for programs; `remedy` is empty where there is nothing to do."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def examine(directory: str) -> list[Finding]:
    """All findings, in the order in which one would mend them; `directory` is one that is to be shared."""
    device = _device()
    helper = mounting.helper_path()
    found = [_kernel(), device, _admin(), _helper(helper)]
    offer: InitIn | None = None
    if device.state is State.OK and (mounting.may_mount() or helper):
        try:
            offer = _offer()
        except (OSError, UserError) as error:
            found.append(Finding("mount", State.MISSING, f"a trial mount failed: {error}", "mend that, and ask again"))
    found += [
        _llfuse(),
        _libnbd(),
        _qemu_nbd(),
        _version(offer),
        _passthrough(offer),
        _io_uring(offer),
        _namespaces(),
        _file_handles(directory),
        _limit(),
        _guests(),
        _code(),
    ]
    return found


def _kernel() -> Finding:
    if os.path.isdir("/sys/module/fuse") or "\tfuse\n" in _read("/proc/filesystems"):
        return Finding("kernel", State.OK, f"Linux {platform.release()} with FUSE")
    return Finding("kernel", State.MISSING, f"Linux {platform.release()} without FUSE", "modprobe fuse, as root")


def _device() -> Finding:
    try:
        os.close(os.open(mounting.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding("device", State.MISSING, f"{mounting.DEVICE} is not there", "modprobe fuse, as root")
    except OSError as error:
        remedy = f"chmod 0666 {mounting.DEVICE}, as root"
        return Finding("device", State.MISSING, f"{mounting.DEVICE}: {error.strerror}", remedy)
    return Finding("device", State.OK, f"{mounting.DEVICE} can be opened")


def _admin() -> Finding:
    if mounting.may_mount():
        return Finding("cap_sys_admin", State.OK, "CAP_SYS_ADMIN is in effect: mounts are made directly")
    return Finding(
        "cap_sys_admin",
        State.LIMITED,
        "no CAP_SYS_ADMIN: mounts are made through fusermount3, without kernel passthrough, suid or dev",
        "run as root where these are needed",
    )


def _helper(path: str | None) -> Finding:
    if path is None:
        state = State.LIMITED if mounting.may_mount() else State.MISSING
        return Finding("fusermount3", state, "not installed: ordinary users cannot mount", "apt install fuse3")
    if not os.stat(path).st_mode & 0o4000 and not mounting.may_mount():
        return Finding("fusermount3", State.LIMITED, f"{path} is not set-uid root", f"chmod u+s {path}, as root")
    return Finding("fusermount3", State.OK, path)


def _offer() -> InitIn | None:
    """The kernel's INIT, from a mount that lives for that one request."""
    with tempfile.TemporaryDirectory(prefix="passthrough-doctor-") as point:
        mounted = mounting.mount(mounting.MountRequest(os.path.realpath(point), "doctor"))
        try:
            poll = select.poll()
            poll.register(mounted.fd, select.POLLIN)
            if not poll.poll(_INIT_WAIT_MS):
                return None
            request = os.read(mounted.fd, c.FUSE_MIN_READ_BUFFER)
            return read_init(memoryview(request), c.IN_HEADER_SIZE, len(request) - c.IN_HEADER_SIZE)
        finally:
            os.close(mounted.fd)
            mounting.unmount(mounted.mountpoint, lazy=True)


def _version(offer: InitIn | None) -> Finding:
    if offer is None:
        return Finding("fuse_version", State.LIMITED, "unknown: no trial mount could be made", "mend the lines above")
    detail = f"the kernel speaks FUSE {offer.major}.{offer.minor}"
    if (offer.major, offer.minor) < (c.FUSE_KERNEL_VERSION, MINIMUM_MINOR):
        return Finding("fuse_version", State.MISSING, detail, "Linux 4.18 or newer is needed")
    return Finding("fuse_version", State.OK, detail)


def _passthrough(offer: InitIn | None) -> Finding:
    if offer is None:
        return Finding("passthrough", State.LIMITED, "unknown: no trial mount could be made", "mend the lines above")
    if not offer.flags & c.FUSE_PASSTHROUGH:
        remedy = "Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH"
        return Finding("passthrough", State.LIMITED, "the kernel does not offer FUSE passthrough", remedy)
    if not mounting.may_mount():
        return Finding("passthrough", State.LIMITED, "offered, and kept from ordinary users", "run as root")
    return Finding("passthrough", State.OK, "the kernel offers FUSE passthrough")


def _io_uring(offer: InitIn | None) -> Finding:
    parameter = os.path.join(_PARAMETERS, "enable_uring")
    if not os.path.exists(parameter):
        remedy = "Linux 6.14 or newer with CONFIG_FUSE_IO_URING"
        return Finding("io_uring", State.LIMITED, "the kernel has no FUSE over io_uring", remedy)
    if _read(parameter).strip() != "Y":
        return Finding("io_uring", State.LIMITED, f"off: {parameter} is N", f"echo Y > {parameter}, as root")
    if offer is not None and not offer.flags & c.FUSE_OVER_IO_URING:
        return Finding("io_uring", State.LIMITED, "enabled, and not offered to this mount", "run as root")
    return Finding("io_uring", State.OK, "the kernel offers FUSE over io_uring")


def _namespaces() -> Finding:
    limit = _read("/proc/sys/user/max_user_namespaces").strip()
    restricted = _read("/proc/sys/kernel/unprivileged_userns_clone").strip() == "0"
    if limit in ("", "0") or (restricted and os.geteuid() != 0):
        remedy = "sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1, as root"
        return Finding("user_namespaces", State.LIMITED, "switched off: an ordinary user has no sandbox", remedy)
    return Finding("user_namespaces", State.OK, f"up to {limit}")


def _file_handles(directory: str) -> Finding:
    try:
        fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        remedy = "name a directory that is there"
        return Finding("file_handles", State.LIMITED, f"{directory}: {error.strerror}", remedy)
    try:
        if syscalls.has_file_handles(fd):
            return Finding("file_handles", State.OK, f"the file system of {os.path.abspath(directory)} has them")
    finally:
        os.close(fd)
    return Finding(
        "file_handles",
        State.LIMITED,
        f"the file system of {os.path.abspath(directory)} has none: each remembered file takes a descriptor",
        "raise the limit of open files (ulimit -n) for large trees",
    )


def _limit() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} open files, up to {hard}"
    if hard != resource.RLIM_INFINITY and hard < _FEW_DESCRIPTORS:
        return Finding("open_files", State.LIMITED, detail, "raise it: ulimit -Hn, or LimitNOFILE= of the unit")
    return Finding("open_files", State.OK, detail)


def _llfuse() -> Finding:
    why = library.missing()
    if why is not None:
        return Finding("llfuse", State.LIMITED, f"{why.why}: there is no transport=llfuse", why.remedy)
    return Finding("llfuse", State.OK, f"llfuse {library.version()}")


def _libnbd() -> Finding:
    if importlib.util.find_spec("nbd") is None:
        detail = "libnbd's Python module is not installed: export takes raw files and devices alone"
        return Finding("libnbd", State.LIMITED, detail, "apt install python3-libnbd")
    return Finding("libnbd", State.OK, "export takes NBD URIs")


def _qemu_nbd() -> Finding:
    path = shutil.which("qemu-nbd") or shutil.which("qemu-nbd", path="/usr/bin:/usr/local/bin")
    if path is None:
        detail = "not installed: export takes no qcow2, vmdk, vdi, vhdx or luks"
        return Finding("qemu_nbd", State.LIMITED, detail, "apt install qemu-utils")
    return Finding("qemu_nbd", State.OK, path)


def _guests() -> Finding:
    """passthrough serve needs nothing of the kernel beyond eventfd and memfd; a guest needs somebody to run it."""
    names = [name for name in _MACHINES if shutil.which(name)]
    if not names:
        remedy = "apt install qemu-system-x86, where guests are to run here"
        return Finding("guests", State.LIMITED, "no QEMU or Cloud Hypervisor: nobody to serve virtio-fs to", remedy)
    return Finding("guests", State.OK, f"virtio-fs can be served to guests of {', '.join(names)}")


def _code() -> Finding:
    if is_compiled():
        return Finding("code", State.OK, "what each request goes through is compiled")
    return Finding("code", State.OK, "pure Python; make install COMPILED=1 compiles what each request goes through")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
