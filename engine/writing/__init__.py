"""The write path: from a commit to a published timestamp, and what slows or stops it."""
