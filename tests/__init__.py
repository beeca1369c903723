"""The tests: unit and wire (no kernel), mounted (real mounts, real programs)."""
