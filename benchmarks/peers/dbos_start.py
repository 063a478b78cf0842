"""DBOS on its own SQLite: a workflow whose step writes down what time it is.

Arguments: a folder, the workflow's id, and ``new`` to start it or ``killed`` to wait until DBOS has recovered it.
"""

import os
import sys
import time
from pathlib import Path

from dbos import DBOS, SetWorkflowID

folder, name, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
DBOS(config={"name": "start", "system_database_url": f"sqlite:///{folder / 'dbos.sqlite'}", "log_level": "ERROR"})


@DBOS.step()
def step() -> None:
    at = time.time()
    (folder / "at").write_text(repr(at))
    if "FIRST_STEP_HANGS" in os.environ:
        time.sleep(600)


@DBOS.workflow()
def flow() -> None:
    step()


DBOS.launch()
if kind == "new":
    with SetWorkflowID(name):
        flow()
else:
    DBOS.retrieve_workflow(name).get_result()
DBOS.destroy()
