"""File systems: what is served. They know the contract and system calls, and no transport."""
