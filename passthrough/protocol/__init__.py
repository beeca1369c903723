"""The kernel's FUSE ABI: bytes to values and back. No I/O, no file descriptors, no policy; imports nothing of ours."""
