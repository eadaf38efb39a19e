"""RocketQA."""
