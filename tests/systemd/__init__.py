"""The units, under a systemd of our own."""
