"""What the tests of the machine share: a home with toy steps, the real command line, and two real databases."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
import sqlalchemy as sa

from so8t_fsm import artifacts, rulebook, schema
from so8t_fsm.commits import Artifact, Commits
from so8t_fsm.statedir import open_state
from so8t_fsm.store import Run, Store

# No test depends on how quick the computer is, or how busy.
hypothesis.settings.register_profile("so8t", deadline=None)
hypothesis.settings.load_profile("so8t")

ROOT = Path(__file__).resolve().parent.parent
TOYS = ROOT / "tests" / "toy"
TRAIN = ("toy_collect", "toy_preprocess", "toy_train")
"""The shortest pipeline that trains; the machine passes through the states that no step works in."""
ALL = (
    "toy_collect", "toy_extra", "toy_preprocess", "toy_train", "toy_integrate", "toy_evaluate", "toy_upload",
    "toy_cleanup",
)
CLI = (sys.executable, "-c", "from so8t_fsm.cli import main; main()")

BEGAN = 1_735_722_000.0
"""2025-01-01 09:00 UTC."""


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment with the toys installed and nothing of the developer's own so8t in it."""
    clean = {k: v for k, v in os.environ.items() if not k.upper().startswith("SO8T")}
    # COLUMNS: rich must not wrap a line that a test reads.
    return clean | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(TOYS))), "PYTHONUTF8": "1", "COLUMNS": "200"} | extra


@dataclass
class Home:
    """A home directory and the command line to drive it with."""

    path: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list, repr=False)

    @property
    def config(self) -> Path:
        return self.path / "configs" / "toy.yaml"

    @property
    def database(self) -> Path:
        return self.path / "state" / "so8t.db"

    def configure(self, steps: tuple[str, ...] = TRAIN, **sections: Mapping[str, Any]) -> Home:
        """Write ``configs/toy.yaml`` (JSON is YAML): quick back-off, small floors, and what ``sections`` adds."""
        base: dict[str, dict[str, Any]] = {
            "automation": {"steps": list(steps), "backoff": {"initial": "10ms", "max": "50ms"}},
            "resources": {"min_free_disk": "64KB", "min_ram": "1MB", "poll_interval": "100ms"},
        }
        for name, values in sections.items():
            base.setdefault(name, {}).update(values)
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(json.dumps(base, indent=1), encoding="utf-8")
        return self

    def start(self, *args: str | Path, **env: str) -> subprocess.Popen[str]:
        """The command line in a process of its own."""
        process = subprocess.Popen(
            [*CLI, "--home", str(self.path), *map(str, args)], env=child_environment(**env), cwd=self.path,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )
        self.started.append(process)
        return process

    def so8t(
        self, *args: str | Path, expect: int | None = 0, text: str = "", timeout: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end, with ``text`` typed into it."""
        process = self.start(*args, **env)
        try:
            out, err = process.communicate(text, timeout=timeout)
        except BaseException:
            process.kill()
            raise
        assert expect is None or process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def resume(self, *args: str | Path, expect: int = 0, **env: str) -> str:
        """``so8t resume``; returns what it printed."""
        done = self.so8t("resume", *args, expect=expect, **env)
        assert done.stderr == ""
        return done.stdout

    def begin(self, **env: str) -> str:
        return self.resume("--config", self.config, **env)

    @contextmanager
    def store(self) -> Iterator[Store]:
        store = open_state(self.path)
        try:
            yield store
        finally:
            store.close()

    def run(self) -> Run:
        with self.store() as store:
            found = store.latest_run()
        assert found is not None
        return found

    def picture(self) -> dict[str, Any]:
        """What ``so8t state --json`` prints."""
        found: dict[str, Any] = json.loads(self.so8t("state", "--json").stdout)
        return found

    def history(self) -> list[dict[str, Any]]:
        """The last run's history, oldest first."""
        run = self.run().id
        return sorted((r for r in self.rows(schema.history) if r["run_id"] == run), key=lambda row: row["rev"])

    def states(self) -> list[str]:
        """The states the run went through, repetitions left out."""
        names = [row["to_state"] for row in self.history()]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]

    def rows(self, table: sa.Table, step: str | None = None) -> list[dict[str, Any]]:
        """Every row of a table, of one step if given."""
        query = sa.select(table) if step is None else sa.select(table).where(table.c.step == step)
        with self.store() as store, store.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def override(self, key: str, value: Any) -> None:
        """Lay a value over the run's own, as a recovery does."""
        row = {"run_id": self.run().id, "key": key, "value": value, "was": None, "by": "a test", "at": BEGAN}
        with self.store() as store, store.write() as connection:
            connection.execute(sa.insert(schema.override).values(**row))

    def live(self) -> dict[str, Artifact]:
        with self.store() as store:
            return Commits(store, self.path).live(self.run().id)

    def committed(self, step: str) -> Path:
        """The directory of a step's live commit, verified."""
        directory = self.path / "state" / self.live()[step].path
        artifacts.verify(directory)
        return directory

    def identities(self) -> dict[str, str]:
        """What every committed step made, as the hash of its reproducible files; each is verified on the way."""
        return {name: artifacts.verify(self.path / "state" / row.path).identity for name, row in self.live().items()}

    def copy(self, path: Path) -> Home:
        """The same home somewhere else; its runs belong to the copy's own configuration."""
        shutil.copytree(self.path, path)
        copied = Home(path)
        with copied.store() as store, store.write() as connection:
            connection.execute(sa.update(schema.run).values(config_path=str(copied.config)))
        return copied


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Poll until ``condition`` gives something true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
    return found


def finish(process: subprocess.Popen[str], expect: int, seconds: float = 30.0) -> str:
    """Wait for a process that was started earlier.  Returns what it printed."""
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
    return out


def freeze(runner: subprocess.Popen[str], database: Path) -> None:
    """Suspend a runner between two transactions: in the middle of one it would keep everybody out until it wakes."""
    process = psutil.Process(runner.pid)
    while True:
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "a frozen runner")
        connection = sqlite3.connect(database, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            process.resume()
            time.sleep(0.01)
        finally:
            connection.close()


def fill(ballast: Path, leave: int = 0) -> Path:
    """Take all the room there is on a disk but ``leave`` bytes, whoever else writes there meanwhile."""
    free = shutil.disk_usage(ballast.parent).free - leave
    # No buffer: what finds no room would be tried once more when the file is closed.
    with suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while free > 0:
            free -= stream.write(bytes(min(free, 4096)))
    return ballast


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An empty home with a toy configuration; what was started in it ends with the test."""
    made = Home(tmp_path / "home").configure()
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose run of all toy steps was never disturbed: what every disturbed one must equal."""
    made = Home(tmp_path_factory.mktemp("reference")).configure(ALL)
    made.begin()
    return made


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose run was stopped in mid-training, with five checkpoints.  Copy it, don't touch it."""
    made = Home(tmp_path_factory.mktemp("stopped"))
    # Round 13 fails for good, so the run waits for a person there: no timing is involved.
    made.configure(toy={"every_checkpoint": True, "fault": "exception", "fault_after": 13},
                   automation={"max_attempts_without_progress": 1})
    made.resume("--observe-only", "--config", made.config, expect=78)  # no recovery rule may answer
    return made


# PostgreSQL ---------------------------------------------------------------------------------------------------------


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("initdb")
    program = found[-1] if found else Path(on_path) if on_path else None
    return program.resolve().parent if program and program.with_name("pg_ctl").exists() else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own, on a socket in a temporary directory.  Gives the URL of an empty database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs (initdb, pg_ctl) here")
    place = Path(tempfile.mkdtemp(prefix="so8t-pg-"))
    user: dict[str, Any] = {}
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # The server refuses to run as root.
        user = {"user": "nobody", "group": 65534, "extra_groups": []}
        shutil.chown(place, "nobody")

    def program(*args: str) -> None:
        done = subprocess.run([str(programs / args[0]), *args[1:]], cwd=place, capture_output=True, text=True, **user)
        if done.returncode != 0:
            raise RuntimeError(f"{args[0]}: {done.stdout}{done.stderr}")

    data = str(place / "data")
    try:
        program("initdb", "-D", data, "-U", "so8t", "-A", "trust", "-E", "UTF8", "--no-sync")
        # The log file must not be a pipe: pg_ctl would keep it open and subprocess wait for its end.
        options = f"-k {place} -c listen_addresses='' -c fsync=off"
        program("pg_ctl", "-D", data, "-l", str(place / "server.log"), "-w", "-o", options, "start")
    except (RuntimeError, OSError) as error:
        shutil.rmtree(place, ignore_errors=True)
        pytest.skip(f"PostgreSQL can't be started here: {' '.join(str(error).split())[:300]}")
    try:
        yield f"postgresql+psycopg://so8t@/postgres?host={place}"
    finally:
        program("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """A URL of the server with nothing in it."""
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return postgres


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: an SQLite file, then PostgreSQL."""
    if request.param == "sqlite":
        return sa.URL.create("sqlite", database=str(tmp_path / "so8t.db")).render_as_string()
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def store(database: str, tmp_path: Path) -> Iterator[Store]:
    """An open store with the schema in it, on SQLite and on PostgreSQL."""
    opened = open_state(tmp_path, database)
    yield opened
    opened.close()


@pytest.fixture
def opened(home: Home) -> Iterator[Store]:
    """The open store of a home that has a place for logs."""
    (home.path / "logs").mkdir()
    with home.store() as store:
        yield store


@pytest.fixture
def rules_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the YAML takes longer than all the rest of what a monitor does."""
    from monitoring import shipped_rules

    monkeypatch.setattr(rulebook, "load_rules", lambda layers, **_: shipped_rules())
