"""Files of the user's that are read as a stream, by path.

Runs in: supervisor.
Fails with: `OSError`.
"""

from __future__ import annotations

import os
from typing import BinaryIO


def open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    """An existing file, for reading from front to back."""
    return open(path, "rb")
