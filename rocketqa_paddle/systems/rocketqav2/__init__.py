"""RocketQAv2."""
