"""The write-ahead log: frames, writer, reader."""
