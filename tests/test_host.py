"""Children, orphans, signals and places, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from so8t_fsm import host

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the POSIX side")
ROOT = Path(__file__).resolve().parent.parent
ADOPT = "from so8t_fsm import host; control, records = host.adopt_parent()\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., host.Child]]:
    """``start(code)`` spawns a Python that runs ``code``; whatever is left at the end is killed."""
    children: list[host.Child] = []

    def start(code: str, *arguments: str) -> host.Child:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        child = host.spawn([sys.executable, "-c", code, *arguments], environment, tmp_path)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill_group()
        child.wait(10)
        child.close()


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Is no process of that number running (a zombie is not) within the time?"""
    deadline = time.monotonic() + seconds
    while host.process_identity(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return host.process_identity(pid) is None


# The three pipes ----------------------------------------------------------------------------------------------------


def test_a_child_gets_words_and_gives_log_and_records_apart(start: Callable[..., host.Child]) -> None:
    child = start(ADOPT + """
import sys
records.write(b"heard " + control.readline()); records.flush()
print("to the log"); print("also", file=sys.stderr)
raise SystemExit(7)
""")
    assert child.tell(b"hello")
    assert child.records.read() == b"heard hello\n"
    assert sorted(child.log.read().split(b"\n")) == [b"", b"also", b"to the log"]
    assert child.wait(10) == 7 and child.poll() == 7
    assert not host.alive(child.pid, child.started)


def test_the_end_of_the_control_pipe_reaches_the_child(start: Callable[..., host.Child]) -> None:
    child = start(ADOPT + "raise SystemExit(3 if control.read() == b'' else 4)")
    child.control.close()
    assert child.wait(10) == 3


def test_a_record_of_a_megabyte_arrives_whole(start: Callable[..., host.Child]) -> None:
    child = start(ADOPT + "records.write(b'x' * (1 << 20) + b'\\n'); records.flush()")
    assert child.records.readline() == b"x" * (1 << 20) + b"\n"
    assert child.records.readline() == b"" and child.wait(10) == 0


def test_nothing_private_reaches_a_grandchild(start: Callable[..., host.Child]) -> None:
    child = start(ADOPT + """
import json, subprocess, sys
look = "import json, os; print(json.dumps([os.listdir('/dev/fd'), os.read(0, 9).decode(), dict(os.environ)]))"
out = subprocess.run([sys.executable, "-c", look], capture_output=True, close_fds=False, text=True).stdout
records.write(out.encode()); records.flush()
""")
    child.tell(b"secret")
    descriptors, stdin, environment = json.loads(child.records.readline())
    assert stdin == "", "a grandchild would eat the words meant for the child"
    assert len(descriptors) <= 4  # 0, 1, 2 and the listing itself
    assert host.RECORD_FD not in environment and environment[host.PARENT] == str(os.getpid())


def test_telling_a_dead_child_is_no_error(start: Callable[..., host.Child]) -> None:
    child = start("pass")
    assert child.wait(10) == 0
    assert child.tell(b"stop") is False
    child.kill_group()
    child.terminate_group()


def test_what_cannot_be_started_raises_and_leaks_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(FileNotFoundError):
        host.spawn([str(tmp_path / "nothing")], {}, tmp_path)
    assert len(os.listdir("/dev/fd")) == before


def test_adopting_without_a_parent_says_so() -> None:
    environment = {k: v for k, v in os.environ.items() if k != host.RECORD_FD} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ADOPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "only the machine starts this process" in done.stderr


# Ends ---------------------------------------------------------------------------------------------------------------

FAMILY = ADOPT + """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
grandchild = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
grandchild.stdout.readline()
records.write(b"%d\\n" % grandchild.pid); records.flush()
"""


def test_killing_the_group_kills_the_grandchild(start: Callable[..., host.Child]) -> None:
    child = start(FAMILY + "time.sleep(60)")
    grandchild = int(child.records.readline())
    child.terminate_group()
    assert child.wait(0.3) is None, "both ignore SIGTERM"
    child.kill_group()
    assert child.wait(10) == -signal.SIGKILL
    assert gone(grandchild)


def test_sigterm_reaches_the_group(start: Callable[..., host.Child]) -> None:
    child = start(ADOPT + "import time; records.write(b'up\\n'); records.flush(); time.sleep(60)")
    child.records.readline()
    child.terminate_group()
    assert child.wait(10) == -signal.SIGTERM


def test_a_child_that_ends_takes_its_grandchild_along(start: Callable[..., host.Child]) -> None:
    child = start(FAMILY + "import os; os._exit(0)")
    grandchild = int(child.records.readline())
    assert child.wait(10) == 0
    assert gone(grandchild), "it would keep GPU memory and the log pipe"
    assert child.log.read() == b""


def test_closing_does_not_wait_for_a_stranger_that_holds_the_log(start: Callable[..., host.Child]) -> None:
    child = start(ADOPT + """
import subprocess, sys
stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
records.write(b"%d\\n" % stranger.pid); records.flush()
""")
    stranger = int(child.records.readline())
    reader = threading.Thread(target=child.log.read, daemon=True)
    reader.start()
    try:
        assert child.wait(10) == 0
        before = time.monotonic()
        child.close()
        assert time.monotonic() - before < 3
    finally:
        os.kill(stranger, signal.SIGKILL)
        reader.join(5)


RUNNER = """
import os, sys, time
from pathlib import Path
from so8t_fsm import host
child = host.spawn([sys.executable, "-c", sys.argv[1]], dict(os.environ), Path.cwd())
line = child.records.readline().decode().strip() if "records" in sys.argv[1] else ""
print(child.pid, child.started, line, flush=True)
time.sleep(60)
"""


def orphaned(code: str) -> tuple[int, float, str]:
    """Start a runner whose child runs ``code``, kill the runner, and return the child's pid, stamp and first record."""
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, code], env={**os.environ, "PYTHONPATH": str(ROOT)},
                              stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    pid, started, *rest = runner.stdout.readline().split()
    runner.kill()
    runner.wait()
    runner.stdout.close()
    return int(pid), float(started), " ".join(rest)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_dies_with_its_parent() -> None:
    # It neither reads its control pipe nor hears SIGTERM.
    pid, started, word = orphaned(ADOPT + """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
records.write(b"up\\n"); records.flush(); time.sleep(60)""")
    assert word == "up"
    assert gone(pid) and not host.alive(pid, started)


def test_a_child_whose_parent_is_gone_before_it_looks_ends_at_once(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("Linux only")
    reader, writer = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), host.RECORD_FD: str(writer), host.PARENT: "1"}
    child = subprocess.Popen([sys.executable, "-c", ADOPT + "raise SystemExit(42)"], env=environment,
                             stdin=subprocess.DEVNULL, pass_fds=(writer,))
    os.close(writer)
    assert child.wait(20) == 1
    os.close(reader)


def test_an_orphan_is_killed_only_when_it_is_the_one_recorded() -> None:
    # This child never adopted its parent, so it outlives the runner.
    pid, started, _ = orphaned("import time; time.sleep(60)")
    assert host.alive(pid, started)
    assert host.kill_orphan(pid, started - 10) is False and host.alive(pid, started)
    assert host.kill_orphan(pid, started) is True
    assert gone(pid)
    assert host.kill_orphan(pid, started) is False


def test_a_stranger_with_the_same_number_keeps_its_family() -> None:
    pid, started, grandchild = orphaned("""
import os, subprocess, sys, time  # no adopting of the parent, but records
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
os.write(int(os.environ["SO8T_RECORD_FD"]), b"%d\\n" % child.pid); time.sleep(60)""")
    assert host.kill_orphan(pid, started - 10) is False
    assert host.alive(pid, started) and host.process_identity(int(grandchild))
    assert host.kill_orphan(pid, started) is True
    assert gone(pid) and gone(int(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="the child dies with the runner only on Linux")
def test_a_dead_childs_grandchildren_are_found_and_killed() -> None:
    pid, started, grandchild = orphaned(FAMILY + "time.sleep(60)")
    assert gone(pid)
    stamp = host.process_identity(int(grandchild))
    assert stamp is not None and host.alive(*stamp), "nobody told it"
    assert host.kill_orphan(pid, started) is True
    assert gone(int(grandchild))


def test_a_runner_never_kills_itself() -> None:
    identity = host.process_identity(os.getpid())
    assert identity is not None
    assert host.kill_orphan(*identity) is False


# Identity -----------------------------------------------------------------------------------------------------------


def test_identity() -> None:
    pid, started = host.process_identity(os.getpid()) or (0, 0.0)
    assert pid == os.getpid() and host.alive(pid, started)
    assert not host.alive(pid, started + 1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = host.process_identity(child.pid)
    assert identity is not None and host.alive(*identity)
    child.kill()
    deadline = time.monotonic() + 5
    while host.alive(*identity) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not host.alive(*identity) and host.process_identity(child.pid) is None
    child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="Windows records the time once")
def test_identity_does_not_move_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = host.process_identity(os.getpid())
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 1.0)
    assert psutil.Process().create_time() < 1e9, "psutil's does"
    assert host.process_identity(os.getpid()) == before


def test_boots() -> None:
    assert host.boot_id() == host.boot_id() and host.host_name()
    assert host.same_boot("1700000000", "1700000002") and not host.same_boot("1700000000", "1700000100")
    assert host.same_boot(host.boot_id(), host.boot_id()) and not host.same_boot(host.boot_id(), "another")


# Signals ------------------------------------------------------------------------------------------------------------


def test_a_signal_is_noted_and_wakes_the_loop() -> None:
    before = signal.getsignal(signal.SIGTERM)
    woken: list[str] = []
    with host.StopSignals(lambda: woken.append("x")) as signals:
        assert signals.requested is None and not signals.wait(0)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        asked = time.monotonic()
        assert signals.wait(20) and time.monotonic() - asked < 5
        assert (signals.requested, signals.count, woken) == ("SIGTERM", 1, ["x"])
        assert not signals.wait(0.01), "one signal wakes once"
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.wait(5) and signals.requested == "SIGTERM" and signals.count == 3
        assert not signals.saved.is_set()
    assert signals.saved.is_set(), "a Windows handler must not wait for what will not come"
    assert signal.getsignal(signal.SIGTERM) is before


def test_under_nohup_a_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with host.StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.wait(0.1) and signals.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_storm_of_signals_never_blocks_the_loop() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test run under nohup ignores it, and so would we
    with host.StopSignals() as signals:
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                os.kill(os.getpid(), signal.SIGHUP)

        thread = threading.Thread(target=storm)
        thread.start()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            signals.wait(0.001)
        stop.set()
        thread.join(10)
    signal.signal(signal.SIGHUP, before)
    assert signals.count > 10


# Places -------------------------------------------------------------------------------------------------------------

Mount = namedtuple("Mount", "mountpoint fstype")


@pytest.mark.parametrize(("mounts", "kind"), [
    ([("/", "ext4")], None),
    ([("/", "ext4"), ("HERE", "nfs4")], "nfs4 at HERE"),
    ([("/", "nfs4"), ("HERE", "ext4")], None),
    ([("HERE", "nfs4"), ("/", "ext4"), ("HERE", "ext4")], None),
    ([("/", "ext4"), ("HERE-not", "cifs")], None),
    ([("/", "ext4"), ("HERE", "fuse.sshfs")], "fuse.sshfs at HERE"),
    ([("/", "ext4"), ("HERE", "9p")], "9p at HERE"),
])
def test_network_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: list[tuple[str, str]], kind: str | None
) -> None:
    here = str(tmp_path.resolve())

    def partitions(all: bool) -> list[Any]:
        assert all
        return [Mount(place.replace("HERE", here), fstype) for place, fstype in mounts]

    monkeypatch.setattr(psutil, "disk_partitions", partitions)
    expected = kind.replace("HERE", here) if kind else None
    assert host.is_network_path(tmp_path / "not" / "yet" / "so8t.db") == expected


def test_a_link_is_followed_to_where_the_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share, link = tmp_path.resolve() / "share", tmp_path.resolve() / "link"
    share.mkdir()
    link.symlink_to(share)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [Mount("/", "ext4"), Mount(str(share), "cifs")])
    assert host.is_network_path(link / "so8t.db") == f"cifs at {share}"


def test_this_disk_is_local(tmp_path: Path) -> None:
    assert host.is_network_path(tmp_path) is None


def test_the_windows_half_is_well_typed() -> None:
    """It cannot run here; mypy, reading it for Windows, at least knows every name and call in it."""
    pytest.importorskip("mypy")
    files = [f"so8t_fsm/{name}.py" for name in ("host", "host_windows", "stopping")]
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--platform", "win32", *files],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_windows_half_is_never_imported_elsewhere() -> None:
    code = "import so8t_fsm.host, so8t_fsm.stopping, sys; raise SystemExit('so8t_fsm.host_windows' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
