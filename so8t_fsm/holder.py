"""Who holds the lease, and whether they are alive.  Split from :mod:`so8t_fsm.lease` so that looking stays quick."""

from __future__ import annotations

import os
from dataclasses import dataclass

from so8t_fsm import host


@dataclass(frozen=True)
class Holder:
    """The lease row."""

    epoch: int
    host: str | None
    boot: str | None
    pid: int | None
    pid_started: float | None
    heartbeat_at: float | None
    expires_at: float | None

    def alive(self, at: float) -> bool:
        """Must another runner keep away?  A dead process of this machine is known at once, a silent host by time."""
        if self.pid is None or self.expires_at is None:
            return False
        if self.host == host.host_name() and not host.alive(self.pid, self.pid_started or 0.0):
            return False
        return self.expires_at > at


def own_identity() -> tuple[int, float]:
    """This process's pid and start stamp."""
    return host.process_identity(os.getpid()) or (os.getpid(), 0.0)
