"""Corpus in, hits out."""
