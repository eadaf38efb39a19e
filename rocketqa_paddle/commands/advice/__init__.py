"""Settings for somebody's own data: a look at data and machine, what follows from it, and the YAML file."""
