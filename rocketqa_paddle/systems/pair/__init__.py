"""PAIR."""
