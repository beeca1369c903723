#!/usr/bin/env python3
"""Show SRC on MNT, with a line on standard output for each opened file: .venv/bin/python examples/audit.py SRC MNT

A line has the caller's uid and pid, how the file was opened, whether that worked, and the path. The kernel asks us for
each open, also where it then reads and writes the file itself. It does not ask where it refuses the caller by the
file's mode, nor when a descriptor is inherited or passed on.
"""

import errno
import os
import sys

from passthrough import Context, Entry, Opened, Tree, UserError, mount

HOW = {os.O_RDONLY: "read", os.O_WRONLY: "write", os.O_RDWR: "read and write"}


class Audit(Tree):
    """The shared directory, telling of opens."""

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """A file that is there. Where path_of() knows no name, it has been removed."""
        try:
            opened = super().open(ctx, nodeid, flags, open_flags)
        except OSError as error:
            self.tell(ctx, flags, self.path_of(nodeid), error)
            raise
        self.tell(ctx, flags, self.path_of(nodeid))
        return opened

    def create(self, ctx: Context, nodeid: int, name: bytes, flags: int, *how: int) -> tuple[Entry, Opened]:
        """A new one, which is open at once."""
        try:
            created = super().create(ctx, nodeid, name, flags, *how)
        except OSError as error:
            if error.errno != errno.ESTALE:  # it is there already: the kernel looks again, and opens it
                self.tell(ctx, flags, self.path_of(nodeid, name), error)
            raise
        self.tell(ctx, flags | os.O_CREAT, self.path_of(nodeid, name))
        return created

    def tmpfile(self, ctx: Context, nodeid: int, name: bytes, flags: int, *how: int) -> tuple[Entry, Opened]:
        """One that has no name yet (O_TMPFILE); told with its directory."""
        made = super().tmpfile(ctx, nodeid, name, flags, *how)
        self.tell(ctx, flags | os.O_CREAT, self.path_of(nodeid))
        return made

    @staticmethod
    def tell(ctx: Context, flags: int, path: bytes | None, error: OSError | None = None) -> None:
        """One line, in one write: methods run side by side."""
        how = "create" if flags & os.O_CREAT else HOW.get(flags & os.O_ACCMODE, "?")
        result = "ok" if error is None else errno.errorcode.get(error.errno or 0, "?")
        sys.stdout.write(f"uid={ctx.uid} pid={ctx.pid} {how}: {result}: {path!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: audit.py SRC MNT")
    try:
        mount(Audit(sys.argv[1]), sys.argv[2]).run()
    except (OSError, UserError) as failed:
        sys.exit(str(failed))
