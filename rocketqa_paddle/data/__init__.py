"""Data files, read and written, and the records that they hold."""
