"""File systems of a test's own: a small one in memory, and a disk image whose power can be cut.

Both need the rights to mount; without them a test is skipped, and the reason says so.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_SHUTDOWN: Final = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125  # FS_IOC_SHUTDOWN
_FREEZE: Final = (3 << 30) | (4 << 16) | (ord("X") << 8) | 119  # FIFREEZE
_THAW: Final = _FREEZE + 1
_NO_FLUSH: Final = struct.pack("I", 2)  # not even the journal is written
_IMAGE_MIB: Final = 96


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _unmount(path: Path) -> None:
    """What was killed a moment ago may still be closing its files."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return _run("umount", str(path))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # nothing announces that a file system is free


@contextmanager
def small_disk(where: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB in memory."""
    where.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "meles-test", str(where))
    except OSError as error:
        pytest.skip(f"no small file system: {error}")
    try:
        yield where
    finally:
        try:
            _unmount(where)
        except OSError:
            _run("umount", "--lazy", str(where))
            raise


class PowerDisk:
    """An ext4 file system in an image in memory. `cut` throws away all that was not synced."""

    def __init__(self, home: Path) -> None:
        self.path = home / "mounted"
        shm = Path("/dev/shm")
        self.image = (shm if os.access(shm, os.W_OK) else home) / f"meles-disk-{os.getpid()}"

    def make(self) -> None:
        """Make and mount it, or skip the test."""
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("no power cut: there is no mkfs.ext4")
        with self.image.open("wb") as file:
            file.truncate(_IMAGE_MIB << 20)
        self.path.mkdir()
        try:
            _run("mkfs.ext4", "-q", "-F", str(self.image))
            self.mount()
        except OSError as error:
            self.image.unlink()
            pytest.skip(f"no power cut: {error}")

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.path))

    def cut(self) -> None:
        """From now on nothing reaches the disk, and every call fails."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_FLUSH)
        finally:
            os.close(fd)

    def _ioctl(self, request: int) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, request, 0)
        finally:
            os.close(fd)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every call that would change it waits."""
        self._ioctl(_FREEZE)
        try:
            yield
        finally:
            self._ioctl(_THAW)

    def settle(self) -> bool:
        """All of it is in the image now."""
        _unmount(self.path)
        self.mount()
        return True

    def lose(self, share: float) -> None:
        """Nothing behind the first `share` of the image can be read any more."""
        os.truncate(self.image, int((_IMAGE_MIB << 20) * share))
        for folder, _, names in os.walk(self.path):
            for name in names:
                fd = os.open(Path(folder) / name, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def mend(self, whole: Path) -> None:
        """The image as it was."""
        _unmount(self.path)
        shutil.copyfile(whole, self.image)
        self.mount()

    def again(self) -> None:
        """Mount what is left of it."""
        _unmount(self.path)
        self.mount()

    def remove(self) -> None:
        _unmount(self.path)
        self.image.unlink()
