"""Processes and places on this computer; with :mod:`so8t_fsm.stopping` the only file that knows the system below.

A step's child is started in a group of its own with three pipes: *control* to it (its end is the parent's death),
*log* from it (stdout and stderr) and *records* from it (what it says to the machine).  It dies with its parent, and
what it started dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from so8t_fsm.stopping import StopSignals as StopSignals
from so8t_fsm.stopping import keep_awake as keep_awake

if sys.platform == "win32":
    import msvcrt

    from so8t_fsm import host_windows

RECORD_FD = "SO8T_RECORD_FD"
PARENT = "SO8T_PARENT"
"""The parent's pid.  It stays in the environment: by it, left-over grandchildren are known to be ours."""

NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.davfs2", "fuse.glusterfs", "fuse.gvfsd-fuse",
    "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "prl_fs", "smb2", "smb3",
    "smbfs", "vboxsf", "webdav",
})
"""File systems on which SQLite's locks or shared memory do not hold (9p: Windows drives below /mnt in WSL 2)."""

_SAME = 0.05
_PR_SET_PDEATHSIG = 1


# Who is who ---------------------------------------------------------------------------------------------------------


def host_name() -> str:
    """This computer's name."""
    import socket

    return socket.gethostname()


@functools.cache
def boot_id() -> str:
    """Differs after every boot.  Elsewhere than on Linux it is the boot time in seconds; see :func:`same_boot`."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    import psutil

    return f"{psutil.boot_time():.0f}"


def same_boot(one: str, other: str) -> bool:
    """Whether two :func:`boot_id` values are one boot; boot times are computed from the clock and jitter a little."""
    if one.isdigit() and other.isdigit():
        return abs(int(one) - int(other)) <= 5
    return one == other


def process_identity(pid: int) -> tuple[int, float] | None:
    """The pid and its start stamp, which together never name another process; None when it is not running.

    The stamp is a number to compare, not a time to show.  On Linux it is seconds since boot plus a number made from
    the boot id: psutil's ``create_time`` moves with the clock, and a PC that also boots Windows often has its clock
    moved by hours just after the start, when a second runner would take the first one for dead.
    """
    stamp = _start_stamp(pid)
    return None if stamp is None else (pid, stamp)


def alive(pid: int, started: float) -> bool:
    """Is the very process that :func:`process_identity` saw still running?  A zombie is dead."""
    stamp = _start_stamp(pid)
    return stamp is not None and abs(stamp - started) < _SAME


def _start_stamp(pid: int, *, zombies: bool = False) -> float | None:
    if sys.platform == "linux":
        try:
            # The name, in parentheses, may itself hold spaces and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        if fields[0] in (b"Z", b"X") and not zombies:
            return None
        return int(fields[19]) / os.sysconf("SC_CLK_TCK") + int(boot_id()[:8], 16)
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE and not zombies:
            return None
        return process.create_time()
    except (psutil.Error, OSError):
        return None


# The parent's side --------------------------------------------------------------------------------------------------


class Child:
    """A step's process and all it starts.

    Attributes:
        pid, started: its identity, as :func:`alive` takes it.
        control: to the child's control reader; closing it asks the child to end.
        log: the child's stdout and stderr, as bytes.
        records: what the child writes to its record writer.
    """

    def __init__(self, process: subprocess.Popen[bytes], records: IO[bytes], job: Any = None) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self.started = _start_stamp(process.pid, zombies=True) or 0.0
        self.control: IO[bytes] = process.stdin
        self.log: IO[bytes] = process.stdout
        self.records = records
        self._process, self._job = process, job
        self._code: int | None = None

    def tell(self, line: bytes) -> bool:
        """Send one line to the child.  False when it no longer listens."""
        try:
            self.control.write(line.rstrip(b"\n") + b"\n")
            self.control.flush()
        except (OSError, ValueError):
            return False
        return True

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs.

        When the child has ended, whatever is left of its group is killed, as a Job object does on Windows: a
        grandchild would keep GPU memory and the log pipe.
        """
        if self._code is None and self._ended():
            self._signal_group("SIGKILL")  # the dead child is not reaped yet, so the group's number is still ours
            self._code = self._process.wait()
            if self._job is not None:
                self._job.close()
        return self._code

    def wait(self, timeout: float | None = None) -> int | None:
        """:meth:`poll` until it has ended; None when ``timeout`` seconds were not enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while (code := self.poll()) is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        return code

    def terminate_group(self) -> None:
        """SIGTERM to all of it.  On Windows, which has no such request for a process without a console, it ends."""
        self._signal_group("SIGTERM")

    def kill_group(self) -> None:
        """End all of it at once."""
        self._signal_group("SIGKILL")

    def close(self) -> None:
        """Close the pipes; what is not read is lost.

        A process that left the group may hold the log open, and a thread that reads it then holds its lock: such a
        pipe is left to that thread.
        """
        closers = [threading.Thread(target=_close, args=(stream,), name="so8t-close", daemon=True)
                   for stream in (self.control, self.log, self.records)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(0.5)

    def _ended(self) -> bool:
        """Has it ended?  Looks without reaping where the system can."""
        if sys.platform != "win32" and hasattr(os, "waitid"):
            try:
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                return True
        return self._process.poll() is not None

    def _signal_group(self, name: str) -> None:
        if self._code is not None:
            return
        if sys.platform == "win32":
            self._job.terminate()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self.pid, signal.Signals[name])


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # unsent words to a child that is gone
        stream.close()


def spawn(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> Child:
    """Start a child in its own process group, with its three pipes; the other side is :func:`adopt_parent`.

    Call it from a thread that lives as long as the child may: on Linux the child dies with the *thread* that
    started it.

    Raises:
        OSError: it cannot be started.
    """
    reader, writer = os.pipe()
    job: Any = None
    environment = {**env, PARENT: str(os.getpid())}
    try:
        if sys.platform == "win32":
            handle = host_windows.inheritable_handle(writer)
            job = host_windows.Job()
            # Suspended until it is in the job: otherwise what it starts first could be outside.
            process = subprocess.Popen(
                argv, env={**environment, RECORD_FD: str(handle)}, cwd=cwd, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                startupinfo=subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]}),
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
                | host_windows.CREATE_SUSPENDED)
            try:
                job.add(int(vars(process)["_handle"]))
                import psutil

                psutil.Process(process.pid).resume()
            except BaseException:
                process.kill()
                raise
        else:
            process = subprocess.Popen(
                argv, env={**environment, RECORD_FD: str(writer)}, cwd=cwd, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(writer,), start_new_session=True)
    except BaseException:
        os.close(reader)
        if job is not None:
            job.close()
        raise
    finally:
        os.close(writer)
    return Child(process, os.fdopen(reader, "rb"), job)


def kill_orphan(pid: int, started: float, seconds: float = 5.0) -> bool:
    """Kill what a dead runner left: the child, when it is the very one recorded, and what it had started.

    Returns whether anything was killed.  A process that merely got the same number is never touched.
    """
    import psutil

    now = _start_stamp(pid, zombies=True)
    if pid == os.getpid() or (now is not None and abs(now - started) >= _SAME):
        return False
    victims = [(pid, started)] if alive(pid, started) else []
    if sys.platform != "win32":
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                stamp = _start_stamp(process.pid)
                if (stamp is not None and stamp >= started - _SAME and process.pid not in (pid, os.getpid())
                        and os.getsid(process.pid) == pid and _is_marked(process)):
                    victims.append((process.pid, stamp))
    for victim, _ in victims:
        with contextlib.suppress(psutil.Error):
            psutil.Process(victim).kill()
    deadline = time.monotonic() + seconds
    while any(alive(*victim) for victim in victims) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(victims)


def _is_marked(process: Any, seconds: float = 0.5) -> bool:
    """Was it started by a child of ours?  A program that is being loaded at this instant has no environment yet."""
    deadline = time.monotonic() + seconds
    while not (environment := process.environ()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return PARENT in environment


# The child's side ---------------------------------------------------------------------------------------------------


def adopt_parent() -> tuple[IO[bytes], IO[bytes]]:
    """What a child does first: tie its life to the parent's and take its pipes for itself.

    Returns the control reader (end of file: the parent is gone or asks us to end) and the record writer (buffered:
    flush it).  Neither is inherited by what this process starts, and fd 0 is the null device from here on.

    Raises:
        RuntimeError: this process was not started by :func:`spawn`.
    """
    number = os.environ.pop(RECORD_FD, None)
    if number is None:
        raise RuntimeError(f"{RECORD_FD} is not set: only the machine starts this process")
    _die_with_parent(int(os.environ[PARENT]))
    control = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0, inheritable=True)
    os.close(null)
    if sys.platform == "win32":
        host_windows.set_standard_input(0)
        msvcrt.setmode(control, os.O_BINARY)
        record = host_windows.private_descriptor(int(number), os.O_WRONLY | os.O_BINARY)
    else:
        record = int(number)
        os.set_inheritable(record, False)
    return os.fdopen(control, "rb"), os.fdopen(record, "wb")


def _die_with_parent(parent: int) -> None:
    """Ask Linux for SIGKILL when the parent dies, then look whether it died before we asked.

    Windows has the Job object for it; on macOS the end of the control pipe must do.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


# Places -------------------------------------------------------------------------------------------------------------


def is_network_path(path: Path) -> str | None:
    """The kind of network file system a path lies on, as ``nfs4 at /mnt/nas``; None when it is local."""
    if sys.platform == "win32":
        absolute = str(path.absolute())
        if absolute.startswith("\\\\") and not absolute.startswith(("\\\\?\\", "\\\\.\\")):
            return f"network share {path.absolute().anchor}"
        return f"network drive {path.absolute().anchor}" if host_windows.is_remote_drive(path.absolute()) else None
    import psutil

    from so8t_fsm.resources import existing_parent

    place = (existing_parent(path) or Path("/")).resolve()
    inner = None
    for mount in psutil.disk_partitions(all=True):
        if place.is_relative_to(mount.mountpoint) and (
            inner is None or len(mount.mountpoint) >= len(inner.mountpoint)  # the later of two on one place is on top
        ):
            inner = mount
    network = inner is not None and inner.fstype.lower() in NETWORK_FILE_SYSTEMS
    return f"{inner.fstype} at {inner.mountpoint}" if inner is not None and network else None
