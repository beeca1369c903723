"""The file system of a share: the tree, and what the options put before it; the same behind every door."""

from dataclasses import replace

import sandbox

from ..filesystem import FileSystem
from ..fs.capability import CAPABILITY, ClearedCapability
from ..fs.labels import SecurityLabels
from ..fs.readonly import ReadOnly
from ..fs.renamed import RenamedXattrs
from ..fs.tree import Covered, Opener, Tree
from ..protocol import constants as c
from ..share_options import ShareOptions

ACCESS_LISTS = c.FUSE_POSIX_ACL | c.FUSE_DONT_MASK | c.FUSE_SETXATTR_EXT
"""What a kernel must have for access lists: their check, a umask that a default list overrides, and SGID that a list
may cost."""


def file_system(
    fd: int,
    options: ShareOptions,
    inside: sandbox.Inside,
    *,
    readonly: bool = False,
    covered: Covered | None = None,
    opener: Opener | None = None,
    descriptors: int = 0,
) -> FileSystem:
    """What serves the directory, or the single file, that fd (O_PATH, taken over) is open on, in this sandbox.

    opener: what opens by file handle, if anything may. descriptors: how many the clients may pin; 0: what the limit
    leaves.
    """
    config = replace(options.tree(), descriptors=descriptors)
    tree = Tree(fd, config, covered, inside.proc if inside.root >= 0 else None, opener)
    return before(tree, options, readonly=readonly)


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
