"""Acting as the caller: a file that is created belongs to whoever asked, with the caller's umask.

Only the calling thread changes, by raw system calls. Three things are switched: the effective gid and uid with the one
supplementary group that the kernel names (DAC_OVERRIDE is kept where the kernel has checked the caller's permission: it
knows all of the caller's groups and capabilities, and we do not); the umask, for which each thread gets a file system
context of its own (CLONE_FS); and CAP_FSETID, without which a write clears SUID and SGID as for an ordinary user.
"""

import errno
import logging
import os
import threading
from types import TracebackType

from ... import syscalls
from ...filesystem import failure
from ...protocol.constants import FUSE_INVALID_UIDGID
from ...protocol.values import Context

log = logging.getLogger(__name__)

_CANNOT_GO_ON = 4  # exitcodes.BUG


_OVERRIDE, _FSETID = 1 << syscalls.CAP_DAC_OVERRIDE, 1 << syscalls.CAP_FSETID
_CHECKED = 1 << syscalls.CAP_FOWNER | 1 << syscalls.CAP_LINUX_IMMUTABLE
"""What the kernel that asks has checked itself before it sets a file's flags (fs/file_attr.c)."""


class PerThread(threading.local):
    """A thread's umask, whether it has one of its own, and the capability sets that it switches between.

    Reading the sets costs as much as setting them, so each thread reads its own once, as itself.
    """

    held = False  # whether this thread is somebody else for a whole request (fs/owners/squash.py)

    def __init__(self) -> None:
        self.umask: int | None = None
        self.own: bool | None = None
        self.itself = syscalls.capabilities()
        self.without_fsetid = syscalls.with_effective(self.itself, ~_FSETID)
        self.override_alone = syscalls.with_effective(self.itself, _OVERRIDE)  # if it was kept at all
        self.checked = syscalls.with_effective(self.itself, _CHECKED)


class Nobody:
    """Stay who we are."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        return None


class Caller:
    """Be the caller for a few system calls."""

    __slots__ = ("_ctx", "_thread")

    def __init__(self, ctx: Context, thread: PerThread | None) -> None:
        """thread, where CAP_DAC_OVERRIDE is kept."""
        self._ctx = ctx
        self._thread = thread

    def __enter__(self) -> None:
        ctx = self._ctx
        if ctx.uid == FUSE_INVALID_UIDGID or ctx.gid == FUSE_INVALID_UIDGID:
            raise failure(errno.EOVERFLOW)  # -1 would mean: stay root
        kept = None if self._thread is None else self._thread.override_alone  # read as itself, if for the first time
        try:
            if ctx.groups:
                syscalls.thread_setgroups(ctx.groups)
            if ctx.gid:
                syscalls.thread_setresgid(ctx.gid)
            if ctx.uid:
                syscalls.thread_setresuid(ctx.uid)
                if kept is not None:
                    syscalls.thread_capset(kept)
        except OSError:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        ctx = self._ctx
        try:
            if ctx.uid:
                syscalls.thread_setresuid(0)
            if ctx.gid:
                syscalls.thread_setresgid(0)
            if ctx.groups:
                syscalls.thread_setgroups(())
        except OSError:
            log.critical("a thread cannot become itself again, and must not go on as a client: the daemon ends")
            logging.shutdown()
            os._exit(_CANNOT_GO_ON)


class WithoutFsetid:
    """Let a write clear SUID and SGID."""

    __slots__ = ("_thread",)

    def __init__(self, thread: PerThread) -> None:
        self._thread = thread

    def __enter__(self) -> None:
        syscalls.thread_capset(self._thread.without_fsetid)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        syscalls.thread_capset(self._thread.itself)


class Checked(WithoutFsetid):
    """Have no rights but those that the kernel has checked."""

    __slots__ = ()

    def __enter__(self) -> None:
        syscalls.thread_capset(self._thread.checked)


class Credentials:
    """Who this daemon can be. An ordinary user's daemon can be nobody else, and its files are its own."""

    def __init__(self, *, trusting: bool = True) -> None:
        """trusting: the kernel checks permissions before it asks (default_permissions)."""
        self._trusting = trusting
        self.privileged = os.geteuid() == 0 and syscalls.has_thread_credentials()
        self._has_fsetid = bool(syscalls.effective_capabilities() >> syscalls.CAP_FSETID & 1)
        self._thread = PerThread()
        self._nobody = Nobody()
        self._without_fsetid = WithoutFsetid(self._thread)
        self._checked = Checked(self._thread)
        self.masks = False  # whether the umask is ours to apply (FUSE_DONT_MASK)

    def caller(self, ctx: Context, *, strict: bool = False) -> Caller | Checked | Nobody:
        """A context in which new files belong to ctx. EOVERFLOW where its ids cannot be expressed here.

        strict leaves the caller no capability, where the decision is to be the source kernel's. A kernel that can map
        ids (FUSE_ALLOW_IDMAP) tells the caller's only where something is created: then, those that it checks itself.
        """
        if not self.privileged or (ctx.uid == 0 and ctx.gid == 0 and not ctx.groups):
            return self._nobody
        if strict and ctx.uid == FUSE_INVALID_UIDGID:
            return self._checked
        return Caller(ctx, self._thread if self._trusting and not strict else None)

    def killing_privileges(self, kill: int | bool) -> WithoutFsetid | Nobody:
        """A context in which writing clears SUID and SGID, where `kill` asks for it."""
        return self._without_fsetid if kill and self._has_fsetid else self._nobody

    def masked(self, mode: int, umask: int) -> int:
        """Set this thread's umask, and return the mode to create with (a default ACL overrides a umask, so the
        kernel of the source must know it; where a thread cannot have its own, it is applied here)."""
        if not self.masks:
            umask = 0
        thread = self._thread
        if thread.own is None:
            thread.own = self._own_umask()
        if not thread.own:
            return mode & ~umask
        if thread.umask != umask:
            os.umask(umask)
            thread.umask = umask
        return mode

    @staticmethod
    def _own_umask() -> bool:
        try:
            syscalls.unshare(syscalls.CLONE_FS)
        except OSError as error:
            log.warning("unshare(CLONE_FS): %s; umasks are applied without regard to default ACLs", error.strerror)
            return False
        return True
