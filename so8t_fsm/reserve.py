"""Room that is kept for the day when the disk is full: a file that is deleted so that the database can be written again.

A full disk also refuses the few pages in which a run would record that it is full, and a run that cannot write must
stop until a person comes.  With the reserve given up it writes down what happened, cleans up after itself, and waits
for room.  It is taken back as soon as there is plenty.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from so8t_fsm.step import MiB

NAME = "reserve"
SIZE = 8 * MiB
"""Bytes: twice what the database's log grows to before it is folded in."""
PLENTY = 16 * SIZE
"""Bytes that must be free before the reserve is taken."""


def hold(directory: Path) -> bool:
    """See to it that the reserve is there.  Returns whether it is; never raises, and takes nothing from a tight disk."""
    path = directory / NAME
    try:
        if path.exists() and path.stat().st_size >= SIZE:
            return True
        if shutil.disk_usage(directory).free < PLENTY:
            return False
        with path.open("wb") as out:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(out.fileno(), 0, SIZE)
            else:
                out.write(os.urandom(SIZE))  # what can't be compressed away
        return True
    except OSError:
        give_up(directory)  # half a reserve would be taken for a whole one
        return False


def give_up(directory: Path) -> bool:
    """Make its room free.  Returns whether there was any."""
    with contextlib.suppress(OSError):
        (directory / NAME).unlink()
        return True
    return False
