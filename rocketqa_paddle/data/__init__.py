"""Files of text in and out, and records of them."""
