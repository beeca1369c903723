"""The comparison with peers, in one run: `python -m bench.run`.

`client.c` does the work and holds the clock, `peers` starts and stops who is compared, `processes` keeps track of what
was started, `run` decides the order, `machine` says where it ran and `report` says what came out.
Nothing of `passthrough` is imported: our daemon is measured from outside, like the others.
"""
