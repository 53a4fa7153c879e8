"""Files of the user's, opened by path."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from meles.engine.fs.streams import open_stream


def test_a_file_and_a_pipe_are_read_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    with open_stream(tmp_path / "file") as file:
        assert file.read(3) == b"dat"
        assert not file.writable()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"data",))
    writer.start()
    with open_stream(str(tmp_path / "pipe")) as file:
        assert file.read() == b"data"
    writer.join()
    with pytest.raises(FileNotFoundError):
        open_stream(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        open_stream(tmp_path)
