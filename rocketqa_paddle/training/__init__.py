"""Training: the one loop, its optimizer, the order of examples and the log."""
