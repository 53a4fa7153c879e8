"""Which files exist: the change log and the Version it describes."""
