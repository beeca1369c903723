"""From what a daemon needs to the ordered list of steps.

The order: limits while they can still be raised; namespaces while there is one thread; the root; what the caller has to
do in between (`prepare`: open devices, take over descriptors); then what cannot be undone: Landlock, capabilities,
no_new_privs, and the filter, which forbids most of what the other steps did, last.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from . import capabilities, limits, namespaces, process
from . import landlock as landlocking
from . import seccomp as filtering
from .mounts import Share
from .namespaces import IdMap, Left, wait_outside
from .plan import Plan, Step

_STAYS = Left(lambda first: None, wait_outside)


class Mode(Enum):
    """How files outside the share are kept out of reach."""

    NAMESPACE = "namespace"
    CHROOT = "chroot"
    LANDLOCK = "landlock"
    NONE = "none"


class Choice(Enum):
    """Landlock on top of another mode. AUTO: where this kernel has it, but not on top of NONE."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is wanted. Descriptors and paths are those of the process that enters.

    path and opened are the share: absolute, without symlinks, and a descriptor of it; None for nothing at all.
    files are descriptors of single files that Landlock leaves to be opened anew, by the kernel on our behalf, say.
    keep are the descriptors that stay open besides the standard streams; lifeline is one whose other end the parent
    holds. calls, ioctls and socket families are allowed beyond the filter's own list; with families the network stays.
    kernel_backing keeps CAP_SYS_ADMIN; file_handles allows to take them, not to open them (opener_plan). An ordinary
    user without id maps keeps no capability: in a namespace of that user's they would only add to the user's own
    rights.
    """

    mode: Mode = Mode.NAMESPACE
    landlock: Choice = Choice.AUTO
    seccomp: filtering.Mode = filtering.Mode.ERRNO
    path: str | None = None
    opened: int | None = None
    readonly: bool = False
    receive_mounts: bool = True
    name: str = "daemon"
    files: frozenset[int] = frozenset()
    keep: frozenset[int] = frozenset()
    lifeline: int | None = None
    nofile: int | None = None
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()
    add_capabilities: frozenset[str] = frozenset()
    drop_capabilities: frozenset[str] = frozenset()
    kernel_backing: bool = False
    file_handles: bool = False
    io_uring: bool = False
    calls: tuple[str, ...] = ()
    ioctls: tuple[int, ...] = ()
    families: tuple[int, ...] = ()

    @property
    def in_user_namespace(self) -> bool:
        """Whether a user namespace is made: an ordinary user has no other way to the others."""
        return self.mode is Mode.NAMESPACE and os.geteuid() != 0

    def capabilities(self) -> frozenset[str]:
        """What is kept, if this process has it."""
        kept = set(capabilities.KEPT)
        if os.geteuid() != 0 and not (self.uid_maps or self.gid_maps):
            kept.clear()
        if self.kernel_backing:
            kept.add("SYS_ADMIN")
        return frozenset(kept | self.add_capabilities) - self.drop_capabilities

    def filter(self) -> filtering.Filter:
        """The seccomp filter."""
        calls = (*self.calls, *(filtering.IO_URING if self.io_uring else ()))
        calls += filtering.FILE_HANDLES if self.file_handles else ()
        return filtering.Filter(self.seccomp, calls, self.ioctls, self.families)

    def landlocked(self) -> bool:
        """Whether Landlock is part of the plan."""
        if self.mode is Mode.LANDLOCK or self.landlock is Choice.ON:
            return True
        return self.landlock is Choice.AUTO and self.mode is not Mode.NONE and landlocking.available()


@dataclass(frozen=True, slots=True)
class Inside:
    """What the steps leave behind: descriptors of the root of the share and of /proc/self/fd, -1 where the plan made
    none (landlock, none). With them the working directory is /proc/self/fd."""

    share: Share

    @property
    def root(self) -> int:
        """O_PATH descriptor of the share as it is seen from inside."""
        return self.share.root

    @property
    def proc(self) -> int:
        """O_PATH descriptor of /proc/self/fd."""
        return self.share.proc


def plan(wanted: Confinement, prepare: Sequence[Step] = (), left: Left = _STAYS) -> tuple[Plan, Inside]:
    """The steps, and what they will leave behind. left is for the process that stays outside of a pid namespace."""
    share = Share(wanted.path, wanted.opened, readonly=wanted.readonly, slave=wanted.receive_mounts)
    network = bool(wanted.families)
    steps: list[Step] = [
        Step("close descriptors that were left open", lambda: process.close_others(_kept(wanted))),
        *limits.plan(wanted.nofile),
        *process.groups_plan(),
    ]
    if wanted.mode is Mode.NAMESPACE:
        steps += namespaces.plan(
            user=wanted.in_user_namespace,
            network=network,
            uid_maps=wanted.uid_maps,
            gid_maps=wanted.gid_maps,
            left=left,
        )
        steps += share.namespace_plan()
    elif wanted.mode is Mode.CHROOT:
        steps += share.chroot_plan()
    if wanted.mode in (Mode.NAMESPACE, Mode.CHROOT) and wanted.opened is not None:
        steps.append(_forget_step(wanted.opened))
    steps += prepare
    steps.append(process.no_new_privs_step())
    if wanted.landlocked():
        steps += _landlock(wanted, share, network=network)
    steps += capabilities.plan(wanted.capabilities(), wanted.add_capabilities)
    steps += process.lock_plan(wanted.name, wanted.lifeline)
    steps += filtering.plan(wanted.filter())
    return steps, Inside(share)


OPENER = frozenset({"DAC_READ_SEARCH", "DAC_OVERRIDE", "FOWNER"})
"""To open by handle; and what the daemon itself opens files with: read and write as asked, O_NOATIME."""


def opener_plan(mode: filtering.Mode, name: str, lifeline: int, keep: frozenset[int] = frozenset()) -> Plan:
    """For a child of a process that is about to confine itself, which opens files by their handles on its behalf.

    To be done when the root is there: it has the same, no other descriptor than lifeline and those to keep, and no
    Landlock, which knows files by their paths: one that was opened by its handle may have none.
    """
    return [
        Step("close all other descriptors", lambda: process.close_all_but(keep | {lifeline})),
        process.no_new_privs_step(),
        *capabilities.plan(OPENER, frozenset()),
        *process.lock_plan(name, lifeline),
        *filtering.plan(filtering.Filter(mode, base=filtering.OPENER, rules=filtering.OPENER_RULES)),
    ]


def _kept(wanted: Confinement) -> frozenset[int]:
    opened = {fd for fd in (wanted.opened, wanted.lifeline) if fd is not None}
    return wanted.keep | wanted.files | opened


def _forget_step(opened: int) -> Step:
    """It lies on a mount of the old namespace, where .. leads up."""
    return Step("close the descriptor of the share that came from outside", lambda: os.close(opened))


def _landlock(wanted: Confinement, share: Share, *, network: bool) -> Plan:
    if wanted.opened is None:
        return landlocking.plan(None, "open files" if wanted.files else "nothing", network=network, files=wanted.files)
    opened = wanted.opened
    said = wanted.path or "the share"
    return landlocking.plan(
        lambda: share.root if share.root >= 0 else opened, said, network=network, files=wanted.files
    )
