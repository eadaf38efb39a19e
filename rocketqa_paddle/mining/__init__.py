"""Candidates in, training groups out."""
