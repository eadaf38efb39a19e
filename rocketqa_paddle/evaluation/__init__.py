"""Evaluation: measures of a run, tables and pictures of them."""
