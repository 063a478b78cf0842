"""Actions that ask the computer or the Hub: whose token it is, what is installed, which paths and which GPU are there."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from acting import arguments, imagined, perform, planned
from stage import Stage, rule, rule_set

from so8t_fsm import actions_host, recovery
from so8t_fsm.actions import Intent, Interrupted, Outcome
from so8t_fsm.rules.vocabulary import ACTIONS

SECRET = "hf_" + "AbCdEfGhIjKlMnOpQr"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("any", ["restart_step"]))).build()


# The token ----------------------------------------------------------------------------------------------------------


@contextmanager
def hub(status: int, body: Mapping[str, Any] | None = None, delay: float = 0.0) -> Iterator[tuple[str, list[str]]]:
    """A Hub that answers ``whoami`` in one way.  Gives its address and the tokens it was shown."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("authorization", ""))
            time.sleep(delay)
            said = json.dumps(body if body is not None else {"error": f"no, {shown[-1]}"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", shown
    finally:
        server.shutdown()
        server.server_close()


def me(role: str, orgs: list[dict[str, str]] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": "taro", "orgs": orgs or [], "auth": {"accessToken": {"role": role, **more}}}


def ask(endpoint: str, needs: str = "write", repo: str = "taro/model", beat: Any = lambda: None) -> Outcome:
    values = {"upload": {"target": "hub", "repo_id": repo, "token_env": "HF_TOKEN", "endpoint": ""},
              "resources": {"hub_endpoints": [endpoint]}}
    scene = replace(imagined(values), beat=beat)
    return perform(scene, "verify_hf_token", recovery.plan(scene, "verify_hf_token", arguments("verify_hf_token", needs=needs)))


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return SECRET


def scoped(name: str, *permissions: str) -> dict[str, Any]:
    return {"fineGrained": {"scoped": [{"entity": {"name": name}, "permissions": list(permissions)}]}}


@pytest.mark.parametrize(("answer", "needs", "repo", "status", "person", "says"), [
    (me("write"), "write", "taro/model", "done", False, "taro's and of the kind write"),
    (me("read"), "read", "taro/model", "done", False, "of the kind read"),
    (me("read"), "write", "taro/model", "failed", True, "may only read"),
    (me("write"), "write", "other/model", "failed", True, "may not write to other/model"),
    (me("write", [{"name": "Other", "roleInOrg": "write"}]), "write", "other/model", "done", False, "taro"),
    (me("write", [{"name": "other", "roleInOrg": "read"}]), "write", "other/model", "failed", True, "may not write"),
    (me("fineGrained", **scoped("taro", "repo.write")), "write", "taro/model", "done", False, "fineGrained"),
    (me("fineGrained", **scoped("taro/model", "repo.write")), "write", "taro/model", "done", False, "fineGrained"),
    (me("fineGrained", **scoped("taro/other", "repo.write")), "write", "taro/model", "failed", True, "no repo.write"),
    (me("fineGrained", **scoped("taro", "repo.content.read")), "write", "taro/model", "failed", True, "no repo.write"),
])
def test_whose_token_it_is_and_what_it_may_do(
    token: str, answer: dict[str, Any], needs: str, repo: str, status: str, person: bool, says: str,
) -> None:
    with hub(200, answer) as (endpoint, shown):
        outcome = ask(endpoint, needs, repo)
    assert (outcome.status, outcome.needs_person) == (status, person) and says in outcome.words
    assert shown == [f"Bearer {token}"] and token not in str(outcome)


@pytest.mark.parametrize(("code", "person", "says"), [
    (401, True, "refuses the token (HTTP 401)"), (403, True, "refuses the token (HTTP 403)"),
    (429, False, "could not say (HTTP 429)"), (503, False, "could not say (HTTP 503)"),
])
def test_a_clear_no_is_for_a_person_and_no_answer_is_none(token: str, code: int, person: bool, says: str) -> None:
    with hub(code) as (endpoint, _):
        outcome = ask(endpoint)
    assert (outcome.status, outcome.needs_person) == ("failed", person)
    assert says in outcome.words and token not in str(outcome)


def test_a_hub_that_says_nothing_is_not_waited_for(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_host, "HUB_SECONDS", 0.3)
    beats: list[int] = []
    with hub(200, me("write"), delay=2.0) as (endpoint, _):
        began = time.monotonic()
        outcome = ask(endpoint, beat=lambda: beats.append(1))
        assert time.monotonic() - began < 1.5 and beats
    assert outcome.status == "failed" and not outcome.needs_person and "did not answer" in outcome.words


def test_nobody_at_the_address(token: str) -> None:
    outcome = ask("http://127.0.0.1:9")
    assert outcome.status == "failed" and not outcome.needs_person and "could not be asked (ConnectError)" in outcome.words


@pytest.mark.parametrize("needs", ["read", "write"])
def test_no_token_at_all(token: str, monkeypatch: pytest.MonkeyPatch, needs: str) -> None:
    monkeypatch.delenv("HF_TOKEN")
    outcome = ask("http://127.0.0.1:9", needs)
    assert outcome.needs_person and "there is no token; set HF_TOKEN" in outcome.words


# Dependencies -------------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str) -> None:
    """The smallest wheel that pip installs."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The project requires one thing more than is installed; pip knows one folder and installs into another."""
    monkeypatch.setattr(actions_host.metadata, "requires", lambda name: [
        "click>=8", "so8t-made-up>=1,<2", "never-here; sys_platform == 'amiga'", "pytest; extra == 'dev'"])
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "PIP_NO_CACHE_DIR": "1",
                       "PIP_TARGET": str(tmp_path / "site"), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(key, value)
    return tmp_path


def test_only_our_own_pins_are_installed(pinned: Path) -> None:
    wheel(pinned / "wheels", "so8t_made_up", "1.2")
    wheel(pinned / "wheels", "evil", "6.6")
    intent = planned("install_dependencies", {})
    assert intent.data["packages"] == ["so8t-made-up<2,>=1"]
    for _ in range(2):
        assert perform(imagined({}), "install_dependencies", intent).status == "done"
    assert (pinned / "site" / "so8t_made_up.py").read_text() == "ANSWER = 42\n"
    assert not (pinned / "site" / "evil.py").exists()


def test_pip_that_fails_says_why(pinned: Path) -> None:
    outcome = perform(imagined({}), "install_dependencies", planned("install_dependencies", {}))
    assert outcome.status == "failed" and outcome.words.startswith("pip: ") and "so8t-made-up" in outcome.words


def test_a_name_that_is_not_ours_needs_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was missing, the log is not asked: there is no argument for a name."""
    assert set(ACTIONS["install_dependencies"].model_fields) == {"upgrade"}
    monkeypatch.setattr(actions_host.metadata, "requires", lambda name: ["click>=8"])
    intent = planned("install_dependencies", {})
    assert intent.skip and intent.data["person"] and "not ours to install" in intent.words


def test_an_outdated_package_is_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_host.metadata, "requires", lambda name: ["click>=8"])
    monkeypatch.setattr(actions_host.metadata, "version", lambda name: "7.1")
    assert planned("install_dependencies", {}).data["packages"] == ["click>=8"]


def test_every_pin_of_the_project_is_read() -> None:
    names = {requirement.name for requirement in actions_host._pins()}
    assert {"click", "torch", "sqlalchemy"} <= names and "pytest" not in names
    assert not any(actions_host._unmet(requirement) for requirement in actions_host._pins()
                   if metadata.version("click") and requirement.name in ("click", "sqlalchemy", "pydantic"))


def test_a_stop_kills_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(f"""\
import os, pathlib, time
pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))
time.sleep(60)
""")
    real = actions_host.subprocess.Popen
    monkeypatch.setattr(actions_host.subprocess, "Popen", lambda command, **more: real([sys.executable, str(slow)], **more))

    def beat() -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        perform(replace(imagined({}), beat=beat), "install_dependencies", Intent("", data={"packages": ["x"]}))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# Paths and the GPU --------------------------------------------------------------------------------------------------


def test_our_paths_are_made_and_theirs_must_be_there(tmp_path: Path) -> None:
    values = {"logging": {"directory": "logs"}, "upload": {"target": "folder", "folder": "out/hub"},
              "data": {"sources": [{"kind": "files", "path": "texts"}, {"kind": "generated"}]}}
    scene = replace(imagined(values), home=tmp_path)
    intent = recovery.plan(scene, "verify_paths", arguments("verify_paths"))
    outcome = perform(scene, "verify_paths", intent)
    assert outcome.needs_person and outcome.words == f"not there: {tmp_path / 'texts'}"
    assert (tmp_path / "out" / "hub").is_dir() and not (tmp_path / "texts").exists()
    (tmp_path / "texts").mkdir()
    assert perform(scene, "verify_paths", intent).status == "done"
    only = recovery.plan(scene, "verify_paths", arguments("verify_paths", create=False))
    (tmp_path / "out" / "hub").rmdir()
    assert perform(scene, "verify_paths", only).needs_person and not (tmp_path / "out" / "hub").exists()


class Driver:
    """pynvml, with a process that lets go of its memory after some looks."""

    class NVMLError(Exception): ...

    def __init__(self, looks: int = 0, absent: bool = False, blind: bool = False) -> None:
        self.looks, self.absent, self.blind, self.open = looks, absent, blind, 0

    def nvmlInit(self) -> None:
        if self.absent:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:
        if self.blind:
            raise self.NVMLError("Not Supported")
        self.looks -= 1
        return [SimpleNamespace(pid=4242)] if self.looks >= 0 else []

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:
        return SimpleNamespace(free=1000)


@pytest.mark.parametrize(("driver", "status", "says"), [
    (Driver(looks=3), "done", "is free"), (Driver(looks=10**9), "failed", "still counts"),
    (Driver(absent=True), "skipped", "Driver Not Loaded"), (Driver(blind=True), "skipped", "could not be observed"),
])
def test_gpu_memory_is_waited_for(monkeypatch: pytest.MonkeyPatch, driver: Driver, status: str, says: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(actions_host, "TICK", 0.01)
    killed: list[tuple[int, float]] = []
    monkeypatch.setattr(actions_host.host, "kill_orphan", lambda pid, started: killed.append((pid, started)))
    outcome = perform(imagined({}), "clear_gpu_cache", Intent("", data={"pid": 4242, "started": 7.0, "wait": 0.2}))
    assert outcome.status == status and says in outcome.words
    assert killed == [(4242, 7.0)] and driver.open == 0


def test_whose_memory_it_was_is_in_the_row(stage: Stage) -> None:
    with stage.handle() as handle, handle.fenced() as tx:
        tx.update_attempt(handle.run.id, "training", 1, pid=4242, pid_started=7.0)
    with stage.scene() as scene:
        assert recovery.plan(scene, "clear_gpu_cache", arguments("clear_gpu_cache", wait="3s")).data == {
            "pid": 4242, "started": 7.0, "wait": 3.0}
