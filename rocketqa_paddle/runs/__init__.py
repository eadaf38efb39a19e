"""A run: its folder, its steps, and what the steps hand to one another."""
