"""virtio-fs for guests: the back end of vhost-user.

From below: messages, memory, vring, queue, device, session; virtiofs alone knows FUSE.
"""
