"""Mining: from candidates to training groups."""
