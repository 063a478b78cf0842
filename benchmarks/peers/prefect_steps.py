"""Prefect with its ephemeral server: one flow of many empty tasks.  Arguments: a folder, how many."""

import json
import sys
import time
from importlib.metadata import version

from crash.flushes import mark
from prefect import flow, task

count = int(sys.argv[2])
seconds: list[float] = []


@task(persist_result=True)
def step(i: int) -> int:
    return i


@flow
def steps() -> None:
    step(-1)
    mark()
    for i in range(count):
        began = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - began)
    mark()


steps()
print(json.dumps({"seconds": seconds, "version": version("prefect")}))
