"""Whether a directory is this user's alone to change.

Runs in: supervisor.
Fails with: `PermissionsError`.

Whoever may write to the directory may put other files in the place of ours; checksums find
accidents, not intent. The rule is PostgreSQL's: the owner is this user, root included, and nobody
else may write.
"""

from __future__ import annotations

import os
import stat

from meles.engine.errors import PermissionsError
from meles.engine.fs.files import Directory


def check_ownership(directory: Directory) -> None:
    """Refuse a directory that somebody else may change."""
    found = os.fstat(directory.fd)
    if found.st_uid != os.geteuid():
        raise PermissionsError(
            f"{directory.path} belongs to user {found.st_uid}, this process is user {os.geteuid()}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionsError(
            f"{directory.path} has mode {stat.S_IMODE(found.st_mode):04o}: others may write to it"
        )
