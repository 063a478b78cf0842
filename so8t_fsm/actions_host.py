"""Actions that ask the computer or the Hub: GPU memory, token, dependencies, paths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from so8t_fsm import host
from so8t_fsm.actions import Intent, Outcome, Scene

INSTALL_SECONDS = 1800.0
HUB_SECONDS = 20.0


def plan_clear_gpu(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """The memory belonged to the child, and the child is gone: what is left is to wait until the driver says so."""
    reader = scene.store.reader()
    with reader:
        row = reader.one("SELECT pid, pid_started FROM attempt WHERE run_id = ? AND step = ? AND n = ?",
                         [scene.run.id, scene.step, scene.run.attempt]) or {}
    return Intent("wait until the dead step's GPU memory is free", data={
        "pid": row.get("pid"), "started": row.get("pid_started"), "wait": float(args["wait"])})


def clear_gpu(scene: Scene, intent: Intent) -> Outcome:
    pid = intent.data.get("pid")
    if pid:
        host.kill_orphan(int(pid), float(intent.data.get("started") or 0.0))
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no driver, no library: there is no memory to wait for
        return Outcome("skipped", f"no GPU can be asked ({type(error).__name__}); the process is gone")
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        until = time.monotonic() + float(intent.data["wait"])
        while True:
            held = [p.pid for h in handles for p in pynvml.nvmlDeviceGetComputeRunningProcesses(h) if p.pid == pid]
            free = [int(pynvml.nvmlDeviceGetMemoryInfo(h).free) for h in handles]
            if not held:
                return Outcome("done", "its GPU memory is free", {"free_bytes": free})
            if time.monotonic() > until:
                return Outcome("failed", "the driver still counts memory for the dead process", {"free_bytes": free})
            scene.beat()
            time.sleep(0.5)
    finally:
        pynvml.nvmlShutdown()


def plan_token(scene: Scene, args: Mapping[str, Any]) -> Intent:
    return Intent("ask the Hub who the token is and what it may do", data={
        "needs": args["needs"], "repo": str(scene.setting("upload.repo_id") or ""),
        "endpoint": next(iter(scene.setting("resources.hub_endpoints") or ()), "")})


def verify_token(_scene: Scene, intent: Intent) -> Outcome:
    """``whoami`` and its rights.  Only a clear yes goes on; a clear no is for a person; no answer is no answer."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        answer = HfApi(endpoint=intent.data["endpoint"] or None).whoami()
    except LocalTokenNotFoundError:
        return Outcome("failed", "there is no token; set HF_TOKEN or run `hf auth login`", needs_person=True)
    except HfHubHTTPError as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        if code in (401, 403):
            return Outcome("failed", f"the Hub refuses the token (HTTP {code}); make a new one and set HF_TOKEN",
                           needs_person=True)
        return Outcome("failed", f"the Hub could not say (HTTP {code})")
    except Exception as error:  # every transport has its own errors; none of them is an answer
        return Outcome("failed", f"the Hub could not be asked ({type(error).__name__})")
    token = (answer.get("auth") or {}).get("accessToken") or {}
    role = str(token.get("role", "unknown"))
    if intent.data["needs"] == "write" and role == "read":
        return Outcome("failed", "the token may only read; make one that may write", {"role": role}, needs_person=True)
    return Outcome("done", f"the token belongs to {answer.get('name')} and is of the kind {role}", {"role": role})


def _pins() -> dict[str, str]:
    """What the project itself requires, by normalised name: nothing else is ever installed."""
    found = {}
    for requirement in metadata.requires("so8t") or ():
        if "extra ==" in requirement:
            continue
        name = re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0]
        found[name.lower().replace("_", "-")] = requirement.split(";")[0].strip()
    return found


def _missing() -> list[str]:
    missing = []
    for name, requirement in _pins().items():
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(requirement)
    return missing


def plan_dependencies(_scene: Scene, args: Mapping[str, Any]) -> Intent:
    wanted = sorted(_pins().values()) if args["upgrade"] else _missing()
    if not wanted:
        return Intent("every package the project pins is installed; what is missing is not ours to install", skip=True,
                      data={"person": True})
    return Intent(f"install {', '.join(wanted)}", data={"packages": wanted})


def install_dependencies(scene: Scene, intent: Intent) -> Outcome:
    constraints = Path(__file__).resolve().parents[1] / "constraints.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if constraints.exists():
        command += ["-c", str(constraints)]
    process = subprocess.Popen([*command, *intent.data["packages"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    until = time.monotonic() + INSTALL_SECONDS
    while True:
        try:
            output, _ = process.communicate(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            scene.beat()
            if time.monotonic() > until:
                process.kill()
    if process.returncode != 0:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "pip said nothing")
        return Outcome("failed", f"pip: {last}")
    return Outcome("done", intent.words)


def plan_paths(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Paths that are ours are made; those that a person named must be there."""
    ours = [scene.home / "state", scene.home / str(scene.setting("logging.directory") or "logs")]
    if scene.setting("upload.target") == "folder" and scene.setting("upload.folder"):
        ours.append(scene.home / str(scene.setting("upload.folder")))
    theirs = [str(source["path"]) for source in scene.setting("data.sources") or ()
              if isinstance(source, Mapping) and source.get("path")]
    return Intent("look whether the configured paths are there", data={
        "ours": [str(p) for p in ours], "theirs": [str(scene.home / Path(p).expanduser()) for p in theirs],
        "create": bool(args["create"])})


def verify_paths(_scene: Scene, intent: Intent) -> Outcome:
    made = []
    try:
        for path in map(Path, intent.data["ours"]):
            if not path.is_dir() and intent.data["create"]:
                path.mkdir(parents=True)
                made.append(str(path))
    except OSError as error:
        return Outcome("failed", f"{error.filename}: {error.strerror}", needs_person=True)
    missing = [p for p in intent.data["theirs"] if not Path(p).exists()]
    if missing:
        return Outcome("failed", f"not there: {', '.join(missing)}", {"missing": missing}, needs_person=True)
    return Outcome("done", f"all paths are there ({len(made)} made)", {"made": made})
