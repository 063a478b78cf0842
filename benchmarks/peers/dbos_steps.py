"""DBOS on its own SQLite: one workflow of many empty steps.  Arguments: a folder, how many."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from crash.flushes import mark
from dbos import DBOS

folder, count = Path(sys.argv[1]), int(sys.argv[2])
DBOS(config={"name": "steps", "system_database_url": f"sqlite:///{folder / 'dbos.sqlite'}", "log_level": "ERROR"})
seconds: list[float] = []


@DBOS.step()
def step(i: int) -> int:
    return i


@DBOS.workflow()
def flow() -> None:
    step(0)
    mark()
    for i in range(count):
        began = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - began)
    mark()


DBOS.launch()
flow()
DBOS.destroy()
print(json.dumps({"seconds": seconds, "version": version("dbos")}))
