"""What both sides of the pipe agree on: messages and framing. No descriptors here."""
