"""Policy at work on real faults: rules that change while a run lives by them, looking on, telling a person, pip."""

from __future__ import annotations

import http.server
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import finish, wait_for
from faults import FaultyHome

RULE = """
version: 1
rules:
  - id: unknown
    title: As often as it takes
    state: crashed
    on: {steps: [faulty_gate]}
    match:
      end: {exit_code: {ne: 0}}
    then: [restart_step]
    max_attempts: 2
    backoff: {initial: 10ms, max: 10ms}
    escalate: {to: needs_attention, notify: [critical]}
    tests:
      - {name: an exit code, given: {step: faulty_gate, exit_code: 4}, expect: {rule: unknown}}
"""


@pytest.fixture
def home(tmp_path: Path) -> FaultyHome:
    return FaultyHome(tmp_path / "home")


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An apprise address on this computer, and what was sent to it."""
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"json://127.0.0.1:{server.server_port}/secret", got
        server.shutdown()


def test_rules_that_change_while_a_run_lives_by_them(home: FaultyHome, told: tuple[str, list[dict[str, Any]]]) -> None:
    """A rule of the user's is taken up between two failures; a file that does not lint is refused in one line, and the
    rules before it go on; at the end of its budget a person is told."""
    address, got = told
    home.faults("faulty_gate", automation={"backoff": {"initial": "10ms", "max": "10ms"}})
    own = home.path / "recovery_rules"
    own.mkdir()
    runner = home.start("resume", "--config", home.config, SO8T__NOTIFICATIONS__URLS=address)
    for number in (1, 2, 3):
        wait_for(lambda: (home.path / f"gate-{number}").exists(), f"attempt {number}")  # noqa: B023
        if number == 1:  # the shipped rule would allow one recovery
            (own / "50-mine.yaml").write_text(RULE, encoding="utf-8")
        if number == 2:
            (own / "50-mine.yaml").write_text(RULE.replace("restart_step", "restart_stop"), encoding="utf-8")
        (home.path / f"gate-{number}").unlink()
    said = finish(runner, expect=78, seconds=60)
    assert "the recovery rules were changed:" in said
    (refused,) = [line for line in said.splitlines() if "do not lint, the old ones stay" in line]
    assert "50-mine.yaml:10" in refused and "did you mean 'restart_step'" in refused
    assert home.told() == [("faulty_gate", "crashed", "unknown")] * 3
    assert [row["status"] for row in home.incidents()] == ["escalated"] * 3
    assert home.recoveries() == 2
    assert "the rule 'unknown' was tried 2 times" in home.history()[-1]["reason"]
    (message,) = got
    assert message["title"] == "SO8T needs you: faulty_gate" and message["type"] == "failure"
    assert "the process ended with exit code 4" in message["message"]
    assert "secret" not in said


def test_looking_on_changes_nothing(home: FaultyHome) -> None:
    """With ``--observe-only`` the answer is decided and said; no action, no override, and the machine's own three tries."""
    home.faults("faulty_bytes", training={"batch_size": 16})
    said = home.resume("--observe-only", "--config", home.config, expect=78)
    assert said.count("observing only: rule main-memory would have done: reduce_batch_size") == 3
    assert home.told() == [("faulty_bytes", "out_of_memory", "main-memory")] * 3
    assert [home.actions(row["id"]) for row in home.incidents()] == [[], [], []]
    assert home.overrides() == {} and home.recoveries() == 0

    home.resume("--retry")  # without it, the same fault is answered
    assert home.overrides()["training.batch_size"][:2] == (16, 8) and home.run().state == "completed"


def wheel(folder: Path, name: str) -> None:
    """A package as pip takes it: one module that knows the answer."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "ANSWER = 42\n", f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": "".join(f"{f},,\n" for f in files)}.items():
            archive.writestr(path, text)


def test_a_missing_package_is_installed_from_the_projects_own_list(home: FaultyHome, tmp_path: Path) -> None:
    """A real import, a real pip, a real wheel: the project is made to require one package more, which is not there."""
    part, links, target, project = "so8t_faulty_part", tmp_path / "links", tmp_path / "target", tmp_path / "project"
    info = project / "so8t-0.1.0.dist-info"
    for folder in (links, target, info):
        folder.mkdir(parents=True)
    wheel(links, part)
    steps = metadata.distribution("so8t").read_text("entry_points.txt")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: so8t\nVersion: 0.1.0\nRequires-Dist: {part}==1.0\n")
    (info / "entry_points.txt").write_text(steps or "")
    home.environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (project, target))), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links),
        "PIP_TARGET": str(target), "PIP_CONFIG_FILE": os.devnull,
    }
    home.faults("faulty_module", faulty={"module": part}).begin()
    home.check_recovered([("faulty_module", "dependency_missing", "dependency-missing")])
    assert home.failed("faulty_module")[0]["message"] == f"ModuleNotFoundError: No module named '{part}'"
    assert (home.committed("faulty_module") / "out.txt").read_text() == "faulty_module 42\n"


def test_a_package_that_is_not_ours_is_left_to_a_person(home: FaultyHome, tmp_path: Path) -> None:
    """Nothing whose name merely stands in a log is installed.  Once it is there, the run goes on."""
    home.environment = {"PYTHONPATH": str(tmp_path), "PIP_NO_INDEX": "1"}
    home.faults("faulty_module", faulty={"module": "somebody_elses"})
    said = home.resume("--config", home.config, expect=78)
    assert "what is missing is not ours to install" in said
    (tmp_path / "somebody_elses.py").write_text("ANSWER = 7\n")
    home.resume("--retry")
    assert (home.committed("faulty_module") / "out.txt").read_text() == "faulty_module 7\n"
