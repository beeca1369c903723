"""The file system of a share: the tree, and what the options put before it; the same behind every door.

From the source to the client: the tree (with real or virtual owners), then squashed callers, then translated ids, then
no changes.
"""

import os

import sandbox

from .. import exitcodes
from ..errors import UserError
from ..filesystem import FileSystem
from ..fs.mapped import MappedTree, can_hold
from ..fs.owners.squash import Squashed
from ..fs.owners.translate import Translated
from ..fs.readonly import ReadOnly
from ..fs.tree import Covered, Tree, TreeConfig
from ..owner_options import OwnerOptions, Squash


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
    config: TreeConfig,
    inside: sandbox.Inside,
    owners: OwnerOptions,
    *,
    readonly: bool = False,
    covered: Covered | None = None,
) -> FileSystem:
    """What serves the directory, or the single file, that fd (O_PATH, taken over) is open on, in this sandbox."""
    kind = MappedTree if owners.mapped else Tree
    tree = kind(fd, config, covered, inside.proc if inside.root >= 0 else None)
    fs: FileSystem = tree
    if owners.squash is not Squash.NONE:
        fs = Squashed(tree, owners.anon_uid, owners.anon_gid, everybody=owners.squash is Squash.ALL)
    if owners.translate_uid or owners.translate_gid:
        fs = Translated(fs, owners.translate_uid, owners.translate_gid)
    return ReadOnly(fs) if readonly else fs
