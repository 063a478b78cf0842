"""Actions that ask the computer or the Hub: GPU memory, token, dependencies, paths."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from so8t_fsm import host
from so8t_fsm.actions import Intent, Outcome, Scene

INSTALL_SECONDS = 1800.0
HUB_SECONDS = 30.0
"""The client itself sets no limit to how long it waits for an answer."""
TICK = 0.5

WRITERS = ("admin", "write", "contributor")
"""Roles in an organisation that may write to its repositories."""


# GPU memory ---------------------------------------------------------------------------------------------------------


def plan_clear_gpu(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """The memory belonged to the child, and the child is gone: what is left is to wait until the driver says so."""
    with scene.store.reader() as reader:
        row = reader.one("SELECT pid, pid_started FROM attempt WHERE run_id = ? AND step = ? AND n = ?",
                         [scene.run.id, scene.step, scene.run.attempt]) or {}
    return Intent("wait until the dead step's GPU memory is free", data={
        "pid": row.get("pid"), "started": row.get("pid_started"), "wait": float(args["wait"])})


def clear_gpu(scene: Scene, intent: Intent) -> Outcome:
    """See to it that the child and what it started are gone, then wait for the driver to notice."""
    import pynvml

    pid = intent.data["pid"]
    if pid:
        host.kill_orphan(int(pid), float(intent.data["started"] or 0.0))
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Outcome("skipped", f"the process is gone, and there is no GPU to ask ({error})")
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        until = time.monotonic() + float(intent.data["wait"])
        while True:
            users = {p.pid for device in devices for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
            free = [int(pynvml.nvmlDeviceGetMemoryInfo(device).free) for device in devices]
            if pid not in users:
                return Outcome("done", "its GPU memory is free", {"free_bytes": free})
            if time.monotonic() >= until:
                return Outcome("failed", "the driver still counts memory for the dead process", {"free_bytes": free})
            scene.beat()
            time.sleep(TICK)
    except pynvml.NVMLError as error:
        return Outcome("skipped", f"the process is gone; what it freed could not be observed ({error})")
    finally:
        pynvml.nvmlShutdown()


# The token ----------------------------------------------------------------------------------------------------------


def plan_token(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Which token, asked where, for what: as the step that failed would use it."""
    publishes = scene.setting("upload.target") == "hub"
    upload = publishes and scene.state == "uploading"
    mirror = next(iter(scene.setting("resources.hub_endpoints") or ()), "")
    repo = str(scene.setting("upload.repo_id") or "") if publishes and args["needs"] == "write" else ""
    return Intent("ask the Hub whose the token is" + (f", and whether it may write to {repo}" if repo else ""), data={
        "repo": repo, "variable": str(scene.setting("upload.token_env") or "") if upload or repo else "",
        "endpoint": str(scene.setting("upload.endpoint") or mirror) if upload else mirror})


def verify_token(scene: Scene, intent: Intent) -> Outcome:
    """``whoami`` and its rights.  A clear no is for a person; no answer is no answer.

    What the client says is never repeated: it may hold the token.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    variable = intent.data["variable"]
    token = os.environ.get(variable, "").strip() if variable else None
    if token == "":
        return Outcome("failed", f"there is no token; set {variable}", needs_person=True)
    me = _within(HUB_SECONDS, HfApi(endpoint=intent.data["endpoint"] or None, token=token).whoami, scene.beat)
    if isinstance(me, LocalTokenNotFoundError):
        return Outcome("failed", "there is no token; set HF_TOKEN, or run `hf auth login`", needs_person=True)
    if isinstance(me, HfHubHTTPError):
        code = me.response.status_code
        if code in (401, 403):
            return Outcome("failed", f"the Hub refuses the token (HTTP {code}); make a new one", needs_person=True)
        return Outcome("failed", f"the Hub could not say (HTTP {code})")
    if isinstance(me, Exception):  # every transport has its own errors; none of them is an answer
        return Outcome("failed", f"the Hub could not be asked ({type(me).__name__})")
    if me is None:
        return Outcome("failed", f"the Hub did not answer within {HUB_SECONDS:g} s")
    right = (me.get("auth") or {}).get("accessToken") or {}
    kind, name = str(right.get("role", "unknown")), str(me.get("name"))
    if intent.data["repo"] and (lacking := _lacking(me, right, intent.data["repo"])):
        return Outcome("failed", lacking, {"role": kind}, needs_person=True)
    return Outcome("done", f"the token is {name}'s and of the kind {kind}", {"role": kind})


def _within(
    seconds: float, ask: Callable[[], dict[str, Any]], beat: Callable[[], None],
) -> dict[str, Any] | Exception | None:
    """What ``ask`` gives or raises; None when it takes longer, and its thread is left behind."""
    answers: queue.Queue[dict[str, Any] | Exception] = queue.Queue()

    def asking() -> None:
        try:
            answers.put(ask())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=asking, daemon=True, name="whoami").start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        beat()
        with suppress(queue.Empty):
            return answers.get(timeout=min(TICK, seconds))
    return None


def _lacking(me: Mapping[str, Any], right: Mapping[str, Any], repo: str) -> str | None:
    """Why the token may not write to ``repo``; None when it may."""
    owner = repo.split("/")[0].casefold()
    if right.get("role") == "read":
        return "the token may only read; make one that may write"
    roles = {str(org.get("name", "")).casefold(): org.get("roleInOrg", "write") for org in me.get("orgs") or ()}
    roles[str(me.get("name", "")).casefold()] = "admin"
    if roles.get(owner) not in WRITERS:
        return f"the token's owner may not write to {repo}; change upload.repo_id, or use another token"
    scopes = (right.get("fineGrained") or {}).get("scoped") or ()
    granted = {str((scope.get("entity") or {}).get("name", "")).casefold() for scope in scopes
               if "repo.write" in (scope.get("permissions") or ())}
    if right.get("role") == "fineGrained" and not granted & {owner, repo.casefold()}:
        return f"the token has no repo.write for {repo}; make one that has"
    return None


# Dependencies -------------------------------------------------------------------------------------------------------


def _pins() -> Iterator[Requirement]:
    """What the project itself requires here: nothing else is ever installed."""
    for line in metadata.requires("so8t") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _unmet(requirement: Requirement) -> bool:
    try:
        return not requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return True


def plan_dependencies(_scene: Scene, args: Mapping[str, Any]) -> Intent:
    wanted = sorted(f"{pin.name}{pin.specifier}" for pin in _pins() if args["upgrade"] or _unmet(pin))
    if not wanted:
        return Intent("every package the project pins is installed; what is missing is not ours to install", skip=True,
                      data={"person": True})
    return Intent(f"install {', '.join(wanted)}", data={"packages": wanted})


def install_dependencies(scene: Scene, intent: Intent) -> Outcome:
    """pip, within the versions that were tested together, into the environment that runs this."""
    constraints = Path(__file__).resolve().parents[1] / "constraints.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
               *(["-c", str(constraints)] if constraints.exists() else []), *intent.data["packages"]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace")
    until = time.monotonic() + INSTALL_SECONDS
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=TICK)
                break
            except subprocess.TimeoutExpired:
                scene.beat()
                if time.monotonic() > until:
                    return Outcome("failed", f"pip was not done within {INSTALL_SECONDS:.0f} s")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
        return Outcome("failed", f"pip: {last.strip()[:500]}")
    return Outcome("done", intent.words)


# Paths --------------------------------------------------------------------------------------------------------------


def plan_paths(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Paths that are ours are made; those that a person named must be there."""
    ours = ["state", str(scene.setting("logging.directory") or "logs")]
    if scene.setting("upload.target") == "folder":
        ours.append(str(scene.setting("upload.folder") or ""))
    theirs = [str(source["path"]) for source in scene.setting("data.sources") or ()
              if isinstance(source, Mapping) and source.get("path")]

    def absolute(names: list[str]) -> list[str]:
        return [str(scene.home / Path(name).expanduser()) for name in names if name]

    return Intent("look whether the configured paths are there" + (", and make ours" if args["create"] else ""), data={
        "ours": absolute(ours), "theirs": absolute(theirs), "create": bool(args["create"])})


def verify_paths(_scene: Scene, intent: Intent) -> Outcome:
    made = []
    for path in map(Path, intent.data["ours"]):
        try:
            if not path.is_dir() and intent.data["create"]:
                path.mkdir(parents=True)
                made.append(str(path))
        except OSError as error:
            return Outcome("failed", f"{path} can't be made: {error.strerror}", needs_person=True)
    missing = [path for path in intent.data["ours"] + intent.data["theirs"] if not Path(path).exists()]
    if missing:
        return Outcome("failed", f"not there: {', '.join(missing)}", {"missing": missing}, needs_person=True)
    return Outcome("done", "all paths are there" + (f"; made: {', '.join(made)}" if made else ""), {"made": made})
