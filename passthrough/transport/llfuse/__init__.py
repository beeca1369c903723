"""The third door: requests come by libfuse 2 through its binding llfuse, and go to the same FileSystem.

library     the module, and a session of libfuse's that a mount of ours is put under
nodes       node numbers, which to llfuse are inode numbers
handles     what an open file is remembered by
rooms       memory for data
operations  llfuse's Operations: one call of a FileSystem each
session     INIT, the workers, the end

llfuse keeps its session in globals of the module, so there is one in a process; nothing of it is seen outside of here.
What llfuse cannot express is not asked for: its libfuse answers ENOSYS, and the kernel then does what it does without.
"""
