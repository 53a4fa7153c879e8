"""The only place that touches the file system."""
