"""The command line: a front end over the public API alone."""
