"""Root, or everybody, is one ordinary user on the source: what NFS calls root_squash and all_squash.

Who is squashed gets the anonymous user's rights on the source and no others: each request is done as that user, without
a capability, whatever the kernel that asks has allowed. So root cannot read a file there that is not open to everybody.
Root of the mount whom a translation makes another user has that user's rights and no others.
Stands directly before the tree: ids are the source's here.
"""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from ...filesystem import Buffers, Context, Dirent, Entry, Later, unsupported
from ...protocol import constants as c
from ..decorator import Decorator
from ..tree import Tree
from ..tree.credentials import Caller, Checked, Credentials, Nobody, PerThread, WithoutFsetid
from .translate import Lowered

_AS_THE_CALLER = (
    "lookup readlink symlink mknod mkdir unlink rmdir rename2 link create tmpfile access open opendir setattr ioctl"
    " getxattr setxattr listxattr removexattr"
).split()
"""What the source's kernel decides about; the rest works on what is open already, or tells no secret."""
BY_CALLER = (*_AS_THE_CALLER, "write", "fallocate", "copy_file_range")
"""The methods that look at who asks."""

_UNSEEN = (
    c.FUSE_PASSTHROUGH | c.FUSE_WRITEBACK_CACHE | c.FUSE_ALLOW_IDMAP | c.FUSE_DO_READDIRPLUS | c.FUSE_READDIRPLUS_AUTO
)
"""With these the daemon does not see who opens, writes, asks or looks a name up."""


class _Held(Caller):
    """Be the anonymous user for a whole request: what would change or raise this thread's rights within it does not."""

    __slots__ = ("_held",)

    def __init__(self, ctx: Context, thread: PerThread) -> None:
        super().__init__(ctx, None)
        self._held = thread

    def __enter__(self) -> None:
        self._held.held = True  # first: whatever is new of a thread is read as itself
        try:
            super().__enter__()
        except BaseException:
            self._held.held = False
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, value, tb)
        self._held.held = False


class SquashingCredentials(Credentials):
    """The tree's, which know when a thread is the anonymous user already."""

    def hold(self, ctx: Context) -> _Held:
        """Be this caller, without a capability, for a whole request."""
        return _Held(ctx, self._thread)

    def caller(self, ctx: Context, *, strict: bool = False) -> Caller | Checked | Nobody:
        """As it is, where the thread is held."""
        return self._nobody if self._thread.held else super().caller(ctx, strict=strict)

    def killing_privileges(self, kill: int | bool) -> WithoutFsetid | Nobody:
        """A held thread has no CAP_FSETID."""
        return self._nobody if self._thread.held else super().killing_privileges(kill)


class Squashed(Decorator):
    """Stands before a Tree; `everybody`, or root alone, becomes uid and gid. Another group 0 becomes gid as well."""

    def __init__(self, tree: Tree, uid: int, gid: int, *, everybody: bool) -> None:
        super().__init__(tree)
        self.flags = tree.flags & ~_UNSEEN
        self.required = tree.required & ~_UNSEEN
        self._uid, self._gid, self._everybody = uid, gid, everybody
        if not everybody:
            tree.entry_ns = 0  # a name that the kernel still knows has been looked up by others, who may search there
        self._credentials = SquashingCredentials(trusting=tree.config.default_permissions)
        tree.credentials = self._credentials
        for name in _AS_THE_CALLER:
            setattr(self, name, self._as_the_caller(getattr(tree, name)))
        for name in ("fallocate", "copy_file_range"):
            setattr(self, name, self._in_the_name(getattr(tree, name)))

    def _squash(self, ctx: Context) -> Context | None:
        """The caller as the source is to see it, or None for one who stays."""
        if self._everybody:
            return Context(ctx.unique, self._uid, self._gid, ctx.pid)
        if ctx.uid and ctx.gid and type(ctx) is not Lowered:
            return None
        groups = tuple(group for group in ctx.groups or () if group) or None
        return Context(ctx.unique, ctx.uid or self._uid, ctx.gid or self._gid, ctx.pid, groups)

    def _as_the_caller(self, method: Callable[..., Any]) -> Callable[..., Any]:
        hold, squash = self._credentials.hold, self._squash

        def call(ctx: Context, *arguments: Any) -> Any:
            caller = squash(ctx)
            if caller is None:
                return method(ctx, *arguments)
            with hold(caller):
                return method(caller, *arguments)

        return call

    def _in_the_name(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda ctx, *arguments: method(self._squash(ctx) or ctx, *arguments)

    def readdirplus(
        self, ctx: Context, nodeid: int, fh: int, offset: int, size: int
    ) -> Iterator[tuple[Dirent, Entry | None]]:
        """ENOSYS also for who asks without having agreed on it: it looks names up, which takes more than to list."""
        unsupported()

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int | Later:
        """Whoever is squashed takes SUID and SGID with a write, as any ordinary user."""
        if self._squash(ctx) is not None:
            write_flags |= c.FUSE_WRITE_KILL_SUIDGID
        return self.fs.write(ctx, nodeid, fh, offset, data, write_flags, flags)
