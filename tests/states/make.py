"""Save a state directory as this version writes it: ``python tests/states/make.py tests/states/0002``.

A toy run is killed with SIGKILL in mid-training, so the saved state has a held lease, an open attempt, two commits and
five checkpoints.  The database becomes SQL text that a person can read and compare; names of this machine, and times,
are replaced by fixed ones.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import Home, wait_for  # noqa: E402

from so8t_fsm import host, schema  # noqa: E402

RUN = "20250101-090000-70y5"
BEGAN = 1_735_722_000.0  # 2025-01-01 09:00 UTC


def main(target: Path) -> None:
    if (target / "so8t.sql").exists():
        sys.exit(f"{target} has a saved state already; a schema that was released is never saved anew")
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home").configure(toy={"every_checkpoint": True, "pause": 0.1})
        runner = home.start("resume", "--config", home.config)
        wait_for(lambda: len(home.rows(schema.checkpoint)) >= 8, "eight checkpoints")
        runner.send_signal(signal.SIGKILL)
        runner.communicate()
        time.sleep(1)  # its child dies with it
        save(home, target)


def save(home: Home, target: Path) -> None:
    run = home.run()
    connection = sqlite3.connect(home.database)
    for table in schema.metadata.tables.values():
        for name in (column.name for column in table.columns if column.name == "at" or column.name.endswith("_at")):
            connection.execute(f'UPDATE "{table.name}" SET "{name}" = "{name}" - ?', (run.created_at - BEGAN,))
    connection.execute("UPDATE lease SET boot = 'a-boot', pid = 4242, pid_started = 1.0")
    connection.execute("UPDATE watcher SET pid = 4242, pid_started = 1.0")
    connection.execute("UPDATE attempt SET pid = 4343, pid_started = 1.0")
    connection.commit()
    text = "\n".join(connection.iterdump()) + "\n"
    connection.close()
    text = text.replace(run.id, RUN).replace(str(home.path), "@HOME@").replace(host.host_name(), "a-pc")
    target.mkdir(parents=True, exist_ok=True)
    (target / "so8t.sql").write_text(text, encoding="utf-8", newline="\n")
    shutil.copytree(home.path / "state" / "runs" / run.id, target / "runs" / RUN,
                    ignore=shutil.ignore_patterns("scratch-*", "staging-*"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
