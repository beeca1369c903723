"""virtio-fs over vhost-user, with a front end of our own."""
