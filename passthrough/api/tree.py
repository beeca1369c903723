"""The shared directory for programs: made from a path and keyword arguments, and what a policy must know of a node.

Rules for those who subclass it: passthrough(3), POLICIES. The methods of FileSystem and those of this file are public;
the rest of fs.tree may change with any release.
"""

import contextlib
import os
import resource
import stat
from dataclasses import replace
from errno import ENOTDIR
from typing import Unpack

from .. import exitcodes, share
from ..errors import UserError
from ..filesystem import Agreement, FileSystem, Kernel
from ..fs import mapped, tree
from ..fs.tree import Choice, Covered
from ..fs.tree.base import RESERVED_DESCRIPTORS
from ..fs.tree.inodes import Inode
from ..transport import mounting
from .opener import OpenerThread, opener_of
from .words import TreeWords, tree_config, tree_options

_GONE = b" (deleted)"  # what d_path() in the kernel's fs/d_path.c writes behind the name of what is no longer there
_FEWEST = 16


class Tree(tree.Tree):
    """A directory of this machine, or one regular file, as a file system: subclass it to add a policy.

    It serves one mount or one socket, which takes it over and closes it in the end. `source` is its absolute path.
    """

    def __init__(self, source: str | bytes | os.PathLike[str] | os.PathLike[bytes], **words: Unpack[TreeWords]) -> None:
        """source is opened once (O_PATH), so that it cannot be exchanged later. words are those of passthrough-mount(1)
        that concern the shared directory, timeouts in seconds; and

        announce_submounts: other file systems below source are such in a guest too (passthrough-serve(1)).
        descriptors: how many descriptors clients may pin; beyond that they get ENFILE. 0: what the limit of open files
        leaves besides those that the program has open now.

        OSError where source cannot be opened (ENOTDIR for what is neither a directory nor a regular file), ValueError
        for a value that a word does not take, TypeError for a word that is none, UserError for what this user or the
        source's file system cannot have.
        """
        config = tree_config(words)
        self.said = tree_options(words)
        self._front: FileSystem | None = None
        self._fronted = False
        self._opener: OpenerThread | None = None
        if self.said.mapped is not isinstance(self, mapped.MappedTree):
            raise ValueError("security_model='mapped-xattr' is for a MappedTree, which has no other")
        if not mounting.may_mount():
            if config.passthrough is Choice.ON:
                raise UserError("passthrough='on' needs CAP_SYS_ADMIN", exitcodes.PERMISSION)
            config = replace(config, passthrough=Choice.OFF)
        with contextlib.ExitStack() as undo:
            fd = _opened(source)
            undo.callback(os.close, fd)
            self.source = os.path.abspath(os.fsdecode(source))
            share.check_source(fd, self.source, self.said)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                self._opener = opener_of(fd, self.said.inode_file_handles)
            undo.pop_all()
        config = replace(config, descriptors=config.descriptors or _left())
        super().__init__(fd, config, opener=self._opener)
        self.default_permissions = config.default_permissions

    def front(self) -> FileSystem:
        """The tree with what its words put before it (squash, translate_uid and translate_gid, xattrmap,
        security_label), or itself: what mount, serve and ReadOnly take for it. A file system of one's own that stands
        before a Tree is to be made with this; the tree does not begin where nobody has asked for it."""
        self._fronted = True
        if self._front is None:
            made = share.in_front(self, self.said)
            if made is self:
                return self
            self._front = made
        return self._front

    def init(self, agreement: Agreement, kernel: Kernel | None) -> None:
        """A session begins."""
        if not self._fronted and self.front() is not self:
            raise RuntimeError("what stands before this Tree was not made with its front(), and its words do not hold")
        super().init(agreement, kernel)

    def path_of(self, nodeid: int, name: bytes = b"") -> bytes | None:
        """The path of a node as the mount shows it: b"/" for the root, else b"/..."; with name, of that name in it.

        It is where the kernel now sees what was found by lookup: a rename is followed. Of several hard links it is the
        one that was looked up first. None where that name is gone, or lies outside of the source by now. It says where
        the node was a moment ago: decide by nodeid and name, and use it to tell people. OSError EBADF for an unknown
        node. It costs two readlink(2) calls.
        """
        root = self._linked(self.inodes.root)
        found = self._linked(self.inodes.get(nodeid))
        if root is None or found is None:
            return None
        prefix = root if root.endswith(b"/") else root + b"/"
        if found != root and not found.startswith(prefix):
            return None
        path = b"/" + found[len(prefix) :]
        return os.path.join(path, name) if name else path

    def _linked(self, inode: Inode) -> bytes | None:
        """The path that the kernel has for it."""
        link = self.proc_path(inode)
        path = os.readlink(os.fsencode(link))
        if not path.endswith(_GONE):
            return path
        try:  # a name may end like that
            there, here = os.lstat(path), os.stat(link)
        except OSError:
            return None
        return path if os.path.samestat(there, here) else None

    def open_node(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the caller's own on what a node is, for a policy that must look into it; open(2)'s flags.

        It is opened with this program's rights, not with the client's. OSError EBADF for an unknown node and for what
        is neither a regular file nor a directory; ENFILE, EAGAIN (a lease is being broken), and those of open(2).
        """
        return self.reopen(self.inodes.get(nodeid), flags)

    def will_cover(self, mountpoint: str) -> bool:
        """Keep hold of what the mount will hide, so that in it the mount does not show itself (FileSystem)."""
        if not os.path.isdir(mountpoint):
            return False
        self._uncover()
        self.covered = Covered.before_mount(mountpoint)
        return os.path.samestat(os.stat(mountpoint), os.fstat(self.inodes.root.fd))

    def close(self) -> None:
        """Close every descriptor (FileSystem)."""
        proc, self.proc = self.proc, -1
        if proc >= 0:
            self.destroy()
            self._uncover()
            os.close(proc)
            self.inodes.keeping = None  # which knows the inodes and the tree
            del self.inodes  # and with it the descriptor of source
            if self._opener is not None:
                self._opener.close()
            self._front = None

    def _uncover(self) -> None:
        covered, self.covered = self.covered, None
        if covered is not None:
            os.close(covered.fd)


def _opened(source: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> int:
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind not in (stat.S_IFDIR, stat.S_IFREG):
        os.close(fd)
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), os.fsdecode(source))
    return fd


def _left() -> int:
    """How many descriptors this program could still open, without those that a request needs for a moment."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - len(os.listdir("/proc/self/fd")) - RESERVED_DESCRIPTORS, _FEWEST)
