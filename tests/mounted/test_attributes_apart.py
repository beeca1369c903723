"""Attributes under other names, on real mounts: setcap and overlayfs above them, security labels, write-out."""
