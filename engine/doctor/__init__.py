"""Why a directory does not open, and what can be done: look, decide, do, in files of their own."""
