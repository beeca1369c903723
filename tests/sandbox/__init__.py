"""The sandbox: plans, what is reachable from inside, and the cases of known incidents."""
