"""The one conformance list: what every way into a directory must do, row by row of the table in modes.py."""
