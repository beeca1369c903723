"""`passthrough export`: on real mounts, over real images, devices and NBD servers, beside QEMU's own export."""
