"""Worker processes, split by the side of the pipe the code runs on."""
