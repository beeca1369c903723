"""Tests without a kernel: bytes in, calls, bytes out."""
