"""Prefect with its ephemeral server: a flow whose task writes down what time it is.  Argument: a folder."""

import sys
import time
from pathlib import Path

from prefect import flow, task


@task
def step() -> None:
    at = time.time()
    (Path(sys.argv[1]) / "at").write_text(repr(at))


@flow
def start() -> None:
    step()


start()
