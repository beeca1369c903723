"""A real guest: Debian's kernel under QEMU, with virtio-fs from our daemon."""
