"""A passthrough file system daemon: a real directory, served to the kernel (later to guests) by Python."""

__version__ = "0.1.0"
