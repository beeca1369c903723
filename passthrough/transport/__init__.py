"""Doors: how requests come in and replies go out. They move bytes; what those mean is the server's business."""
