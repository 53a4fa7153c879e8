"""Code that runs in the supervisor: spawning, watching and stopping workers."""
