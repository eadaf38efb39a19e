"""A comparison of systems: its settings, and the walk through all of them."""
