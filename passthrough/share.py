"""The file system of a share: the tree, and what the options put before it; the same behind every door.

From the source to the client: the tree (with real or virtual owners), then squashed callers, then translated ids, then
other names of attributes, then labels, then no changes.
"""

import os
from dataclasses import replace

from . import exitcodes
from .errors import UserError
from .filesystem import FileSystem
from .fs.capability import CAPABILITY, ClearedCapability
from .fs.labels import SecurityLabels
from .fs.mapped import MappedTree, can_hold
from .fs.owners.squash import BY_CALLER, Squashed
from .fs.owners.translate import Translated
from .fs.readonly import ReadOnly
from .fs.renamed import RenamedXattrs
from .fs.tree import Covered, Opener, Tree
from .fs.tree.config import ACCESS_LISTS as ACCESS_LISTS
from .owner_options import OwnerOptions, Squash
from .share_options import ShareOptions


def check_source(fd: int, path: str, options: OwnerOptions) -> None:
    """Whether what fd (O_PATH) is open on can be shared so. UserError where it cannot."""
    if options.squash is not Squash.NONE and os.geteuid() != 0:
        raise UserError(
            f"squash={options.squash.value} needs root: an ordinary user's daemon is that user whoever asks",
            exitcodes.PERMISSION,
        )
    if options.mapped and not can_hold(fd):
        raise UserError(
            f"{path}: security_model=mapped-xattr needs user xattrs, which this file system has not; "
            "share a directory on ext4, xfs, btrfs or tmpfs (Linux 6.6)",
            exitcodes.SOURCE,
        )


def file_system(
    fd: int,
    options: ShareOptions,
    proc: int | None = None,
    *,
    readonly: bool = False,
    covered: Covered | None = None,
    opener: Opener | None = None,
    descriptors: int = 0,
) -> FileSystem:
    """What serves the directory, or the single file, that fd (O_PATH, taken over) is open on.

    proc and opener are as TreeBase has them. descriptors: how many the clients may pin; 0: what the limit leaves.
    """
    config = replace(options.tree(), descriptors=descriptors)
    kind = MappedTree if options.mapped else Tree
    return in_front(kind(fd, config, covered, proc, opener), options, readonly=readonly)


def in_front(tree: Tree, options: ShareOptions, *, readonly: bool = False) -> FileSystem:
    """The tree, with all that the options put before it."""
    return before(owned(tree, options), options, readonly=readonly)


def owned(tree: Tree, options: OwnerOptions) -> FileSystem:
    """What the options about owners put before the tree."""
    fs: FileSystem = tree
    by_caller: tuple[str, ...] = ()
    if options.squash is not Squash.NONE:
        fs = Squashed(tree, options.anon_uid, options.anon_gid, everybody=options.squash is Squash.ALL)
        by_caller = BY_CALLER
    if options.translate_uid or options.translate_gid:
        fs = Translated(fs, options.translate_uid, options.translate_gid, by_caller)
    return fs


def before(fs: FileSystem, options: ShareOptions, *, readonly: bool = False) -> FileSystem:
    """What the options put before a file system: nearest to it what knows the host's names of attributes."""
    if options.posix_acl:
        fs.required |= ACCESS_LISTS
    if options.xattrmap is not None:
        capability = options.xattrmap.renamed(CAPABILITY)
        if capability is not None:
            fs = ClearedCapability(fs, capability)
        fs = RenamedXattrs(fs, options.xattrmap)
    if options.security_label:
        fs = SecurityLabels(fs)
    return ReadOnly(fs) if readonly else fs
