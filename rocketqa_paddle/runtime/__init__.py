"""The machine, the processes and the disk."""
