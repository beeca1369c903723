"""Whose files: what stands before a file system and changes the ids that pass, in either direction."""
