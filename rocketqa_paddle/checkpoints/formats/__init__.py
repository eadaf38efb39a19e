"""One foreign format of models a file."""
