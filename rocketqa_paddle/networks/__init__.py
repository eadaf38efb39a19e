"""Texts in, vectors and scores out: the encoders and what they read."""
