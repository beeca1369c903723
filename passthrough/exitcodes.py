"""Every exit status of the commands, a sentence each. Numbers up to 32 mean what they mean to mount(8)."""

OK = 0
"""It worked."""
USAGE = 1
"""The command line is wrong: an unknown option, a missing argument, a value out of range, options that contradict."""
SYSTEM = 2
"""The system refused something that should work (a fork, a pipe, memory)."""
BUG = 4
"""A mistake of ours; the line says how to get the traceback."""
INTERRUPTED = 8
"""Ended by the user before it was done."""
SOURCE = 10
"""SRC or IMAGE is missing, is not what can be shared, or cannot be read or written."""
MOUNTPOINT = 11
"""MNT or FILE is missing, is of the wrong kind, is not empty (MNT), or is a mount already."""
NO_DEVICE = 12
"""/dev/fuse is not there or cannot be opened."""
PERMISSION = 13
"""This user may not do that."""
KERNEL = 14
"""The kernel is too old, or lacks what was asked for."""
NO_HELPER = 15
"""fusermount3, or llfuse, is needed and not installed."""
NOT_MOUNTED = 16
"""Nothing of ours is mounted there."""
SERVING = 17
"""The mount was made and ended by a failure of the stream, not by an unmount or a signal."""
SANDBOX = 18
"""A step of the sandbox failed; the line names the step and its likely cause."""
SOCKET = 19
"""The socket cannot be made, or another daemon serves it."""
MOUNT_FAILED = 32
"""mount(2) or fusermount3 failed for another reason, which the line gives."""
