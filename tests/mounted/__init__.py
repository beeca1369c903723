"""Tests on real mounts: the daemon as a user starts it, the kernel, and real programs."""
