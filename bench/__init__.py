"""The comparison with peers, in one run: `python -m bench.run`.

`client.c` does the work and holds the clock, `clients` runs it. `contender` says what is compared, `peers` who, `rows`
what they do (`archive` is what the programs unpack), `ground` where, `memory` what they weigh. `processes` keeps track
of what was started, `kernel` of what was set. `run` decides the order; `results` holds what came out, `targets` judges
it, `report` and `plot` show it, `machine` says where it was.
Nothing of `passthrough` is imported: our daemon is measured from outside, like the others.
"""
