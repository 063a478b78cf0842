"""Is this computer ready for the pipeline?  Each check says what was found and what to do about it.

Nothing is imported here that a broken installation could break: torch and the Hub client are asked in a process of
their own, with a time limit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from so8t_fsm import host, resources
from so8t_fsm.footprint import Shape, training_bytes

Status = Literal["ok", "warn", "fail", "unknown"]
Values = Mapping[str, Mapping[str, Any]]

TORCH_SECONDS = 90.0
"""A cold import of torch from a slow disk takes most of a minute."""
HUB_SECONDS = 15.0
TASK = "so8t-resume"
SYNCED_FOLDERS = ("onedrive", "dropbox", "google drive", "googledrive", "icloud", "box sync")

_TORCH = """
import json, torch
devices = []
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    free, total = torch.cuda.mem_get_info(i)
    devices.append({"name": torch.cuda.get_device_name(i), "free": free, "total": total})
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
                  "devices": devices}))
"""

_HUB = """
import json, os, sys
from huggingface_hub import HfApi
try:
    me = HfApi(endpoint=sys.argv[2] or None, token=os.environ[sys.argv[1]].strip()).whoami()
    token = (me.get("auth") or {}).get("accessToken") or {}
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    print(json.dumps({"name": me.get("name"), "orgs": [o.get("name") for o in me.get("orgs") or []],
        "role": token.get("role"), "writes": sorted({(s.get("entity") or {}).get("name", "").split("/")[0]
            for s in scopes if "repo.write" in (s.get("permissions") or [])})}))
except Exception as error:
    response = getattr(error, "response", None)
    print(json.dumps({"error": type(error).__name__, "status": getattr(response, "status_code", None)}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the report.  ``unknown`` means that nobody could look: neither healthy nor failed."""

    name: str
    status: Status
    found: str
    advice: str = ""


class Unobservable(Exception):
    """A helper process did not answer; the text says why."""


def checks(home: Path, values: Values | None = None) -> Iterator[Check]:
    """Every check in turn, the quick ones first.  ``values`` are the effective settings; without them, less is asked.

    A check that breaks is itself reported, as ``unknown``, and the others go on.
    """
    settings: Values = values or {}
    yield python_version()
    yield from guarded("home", lambda: home_path(home))
    yield from guarded("disk", lambda: disk_space(home, settings))
    yield from guarded("database", lambda: database(home))
    yield from guarded("clock", lambda: clock(home))
    yield from guarded("llama.cpp", llama_cpp)
    yield from guarded("autostart", autostart)
    yield from guarded("hub", lambda: hub(settings))
    yield from guarded("torch", lambda: torch_and_vram(home, settings))


def guarded(name: str, look: Callable[[], Check | Iterable[Check]]) -> Iterator[Check]:
    """What ``look()`` finds, one Check or several; its failure becomes an ``unknown``."""
    try:
        found = look()
        yield from [found] if isinstance(found, Check) else found
    except Unobservable as error:
        yield Check(name, "unknown", f"could not be checked: {error}", "mend what the text says and try again")
    except Exception as error:
        yield Check(name, "unknown", f"could not be checked: {type(error).__name__}: {error}",
                    "please report this text")


def python_version() -> Check:
    """3.11 or newer, 64 bits."""
    found = f"Python {platform.python_version()}, {64 if sys.maxsize > 2**32 else 32} bits"
    good = sys.version_info >= (3, 11) and sys.maxsize > 2**32
    return Check("python", "ok" if good else "fail", found, "" if good else "install a 64-bit Python 3.11 or newer")


def home_path(home: Path) -> Check:
    """A place where SQLite is safe and tools of other people find their files."""
    network = host.is_network_path(home)
    if network:
        return Check("home", "fail", f"{home} is on {network}",
                     "SQLite can lose data there: choose a local disk by --home or SO8T_HOME")
    if any(part.lower().startswith(SYNCED_FOLDERS) for part in home.absolute().parts):
        return Check("home", "warn", f"{home} is in a folder that is synchronised to a cloud",
                     "the synchroniser locks files and uploads gigabytes: choose a folder outside it by --home")
    if not str(home.absolute()).isascii() and sys.platform == "win32":
        return Check("home", "warn", f"{home} has non-ASCII characters",
                     "so8t can do it; if an older llama-quantize cannot open its files, choose a plain path")
    return Check("home", "ok", f"{home}, on a local disk")


def disk_space(home: Path, values: Values) -> Check:
    """Room for the base model, its merged copy and its GGUF files, above the configured floor."""
    floor = int(_of(values, "resources", "min_free_disk", 0) or 0)
    shape = Shape.of(_base(values), values.get("model", {}), home)
    # bf16 download 2, merged bf16 2, staging of the merge 2, GGUF f16 2 + q8_0 1.06 + q4_k_m 0.6 bytes a weight.
    need = int(shape.parameters * 9.7) if shape else 0
    parent = resources.existing_parent(home)
    if parent is None:
        return Check("disk", "fail", f"{home.anchor} is not there", "plug the drive in, or choose another --home")
    free = shutil.disk_usage(parent).free
    found = f"{resources.size(free)} free at {parent}"
    found += f", about {resources.size(need + floor)} needed for {_base(values)}" if shape else ""
    if free < need + floor:
        missing = resources.size(need + floor - free)
        return Check("disk", "fail", found, f"free {missing}, or choose a larger disk by --home")
    return Check("disk", "ok", found)


def database(home: Path) -> Check:
    """``PRAGMA quick_check``, read-only."""
    path = home / "state" / "so8t.db"
    if os.environ.get("SO8T_DATABASE"):
        return Check("database", "unknown", "SO8T_DATABASE names another one", "check it with its own tools")
    if not path.exists():
        return Check("database", "ok", "none yet; the first `so8t resume` makes it")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
            answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        return Check("database", "unknown", f"{path}: {error}", "close other programs that use it and try again")
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        return Check("database", "fail", f"{path} is damaged: {answer}",
                     "`so8t resume` puts it aside and restores the newest sound backup")
    return Check("database", "ok", f"{path} is sound")


def clock(home: Path) -> Check:
    """A clock that was set back makes leases and waiting times last too long."""
    state = home / "state"
    stamps = [path.stat().st_mtime for path in (state / "so8t.db", state / "so8t.db-wal") if path.exists()]
    now = time.time()
    if stamps and max(stamps) > now + 60:
        found = f"the clock was set back: it is {_clock(now)}, the state was written {_clock(max(stamps))}"
        return Check("clock", "warn", found,
                     "set the computer's clock, best from the network; waiting times would be too long")
    if now < 1_700_000_000:  # before this program was written
        return Check("clock", "warn", f"it is {_clock(now)}", "set the computer's clock, best from the network")
    return Check("clock", "ok", _clock(now))


def llama_cpp() -> Check:
    """Whether the GGUF files can be quantised and tried out here."""
    modules = [name for name in ("llama_cpp", "cyllama") if importlib.util.find_spec(name)]
    tool = shutil.which("llama-quantize")
    found = ", ".join([*modules, *([tool] if tool else [])])
    if not found:
        return Check("llama.cpp", "warn", "neither llama_cpp nor cyllama nor llama-quantize",
                     "f16 GGUF works without; for q8_0 and q4_k_m: pip install llama-cpp-python")
    return Check("llama.cpp", "ok", found)


def autostart() -> Check:
    """Will it go on by itself after a restart?"""
    if sys.platform == "win32":
        system_root = Path(os.environ.get("SystemRoot", r"C:\Windows"))
        done = subprocess.run([str(system_root / "System32" / "schtasks.exe"), "/query", "/tn", TASK], timeout=15,
                              capture_output=True, stdin=subprocess.DEVNULL, creationflags=subprocess.CREATE_NO_WINDOW)
        there, enabled, what = done.returncode == 0, True, f"the scheduled task {TASK}"
    elif sys.platform == "darwin":
        there = (Path.home() / "Library" / "LaunchAgents" / "jp.so8t.resume.plist").exists()
        enabled, what = True, "the launch agent jp.so8t.resume"
    else:
        units = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
        there = (units / f"{TASK}.service").exists()
        enabled = (units / "default.target.wants" / f"{TASK}.service").is_symlink()
        what = f"the systemd user unit {TASK}"
    if there and enabled:
        return Check("autostart", "ok", f"{what} is registered")
    if there:
        return Check("autostart", "warn", f"{what} is there but not enabled", f"systemctl --user enable {TASK}")
    return Check("autostart", "unknown", f"{what} is not registered", "after a restart, run `so8t resume` yourself")


def hub(values: Values) -> Check:
    """A token that may write to ``upload.repo_id``.  The token itself is never shown."""
    upload = values.get("upload", {})
    if upload.get("target") != "hub":
        return Check("hub", "ok", "not needed: upload.target is not hub")
    variable, repo = str(upload.get("token_env", "HF_TOKEN")), str(upload.get("repo_id", ""))
    owner, make = repo.split("/")[0], "make one with write access at https://huggingface.co/settings/tokens"
    if not os.environ.get(variable, "").strip():
        return Check("hub", "fail", f"{variable} holds no token", f"{make} and set {variable} to it")
    me = ask_python(_HUB, HUB_SECONDS, variable, str(upload.get("endpoint") or os.environ.get("HF_ENDPOINT", "")))
    if "error" in me:
        if me.get("status") in (401, 403):
            return Check("hub", "fail", f"the token in {variable} is not valid", make)
        return Check("hub", "unknown", f"the Hub could not be asked ({me['error']})",
                     "check the network, then try again")
    if me.get("role") == "read":
        return Check("hub", "fail", f"the token of {me['name']} reads only", make)
    if owner not in (me["name"], *me["orgs"]):
        return Check("hub", "fail", f"the token is for {me['name']}, but upload.repo_id is {repo}",
                     "change upload.repo_id, or use a token of that owner")
    if me.get("role") == "fineGrained" and owner not in me["writes"]:
        return Check("hub", "fail", f"the fine-grained token of {me['name']} has no repo.write for {owner}", make)
    return Check("hub", "ok", f"{me['name']}, with write access")


def torch_and_vram(home: Path, values: Values) -> Iterator[Check]:
    """What torch sees, and whether the configured training fits."""
    try:
        found = ask_python(_TORCH, TORCH_SECONDS)
    except Unobservable as error:
        if "No module named 'torch'" not in str(error):
            raise
        yield Check("torch", "fail", "torch is not installed", "pip install torch, or install so8t again")
        return
    devices = found["devices"]
    runtime = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "CPU only"
    text = f"torch {found['version']} ({runtime})"
    nvidia = shutil.which("nvidia-smi")
    if devices:
        yield Check("torch", "ok", f"{text}: {', '.join(d['name'] for d in devices)}")
    elif nvidia and not found["cuda"]:
        yield Check("torch", "warn", f"{text}, though there is an NVIDIA driver",
                    "install the CUDA build of torch: https://pytorch.org/get-started/locally/")
    else:
        yield Check("torch", "warn", f"{text}: no GPU",
                    "a small model trains on the CPU; a large one needs an NVIDIA GPU")
    yield vram(home, values, devices)


def vram(home: Path, values: Values, devices: list[dict[str, Any]]) -> Check:
    """The largest GPU against the estimate of :mod:`so8t_fsm.footprint`."""
    base = _base(values)
    shape = Shape.of(base, values.get("model", {}), home)
    if shape is None:
        return Check("vram", "unknown", f"the size of model.base {base or '(not set)'} is not known here",
                     "compare its size with your GPU memory: bfloat16 weights alone take 2 bytes a parameter")
    need = training_bytes(shape, values, on_gpu=bool(devices))
    text = f"about {resources.size(need)} needed to train {base} ({shape.parameters / 1e9:.2g} B parameters)"
    smaller = "lower training.batch_size or training.max_length, or set training.gradient_checkpointing: true"
    if not devices:
        if need < 4 << 30:
            return Check("vram", "ok", f"{text}; no GPU, the CPU will do")
        return Check("vram", "warn", f"{text}; no GPU", "on a CPU this takes weeks; use a computer with an NVIDIA GPU")
    best = max(devices, key=lambda device: int(device["free"]))
    text += f"; {resources.size(best['free'])} of {resources.size(best['total'])} free on {best['name']}"
    if need <= best["free"]:
        return Check("vram", "ok", text)
    if need <= best["total"]:
        return Check("vram", "warn", text, "close other programs that use the GPU")
    weights = shape.parameters * 2
    return Check("vram", "fail" if weights > best["total"] else "warn", text,
                 "choose a smaller model.base" if weights > best["total"] else smaller)


def ask_python(code: str, seconds: float, *arguments: str) -> dict[str, Any]:
    """Run ``code`` in another Python and read the JSON object it prints last.

    Raises:
        Unobservable: it failed, said nothing, or took too long.
    """
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"}
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW
    try:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, stdin=subprocess.DEVNULL,
                              timeout=seconds, env=environment, creationflags=flags, encoding="utf-8", errors="replace")
    except subprocess.TimeoutExpired:
        raise Unobservable(f"no answer within {seconds:g} s") from None
    except OSError as error:
        raise Unobservable(str(error)) from error
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()
        raise Unobservable(said[-1] if said else f"exit status {done.returncode}") from None
    return dict(answer)


def render(found: Iterable[Check], console: Any = None) -> None:
    """Print the checks as a table: name, status, what was found and, below it, what to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "dim"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("check", "status", "found, and what to do"):
        table.add_column(heading, overflow="fold")
    for check in found:
        # Text, not markup: a path may hold square brackets.  ASCII, not arrows: a console may be cp932 or cp1252.
        advice = (f"\n-> {check.advice}", "italic") if check.advice else ""
        table.add_row(check.name, Text(check.status, style=styles[check.status]), Text.assemble(check.found, advice))
    (console or Console()).print(table)


def as_json(found: Iterable[Check]) -> dict[str, Any]:
    """``{"ok": bool, "checks": [{"name", "status", "found", "advice"}]}``; ok means that nothing failed."""
    listed = list(found)
    return {"ok": all(check.status != "fail" for check in listed), "checks": [asdict(check) for check in listed]}


def _base(values: Values) -> str:
    return str(_of(values, "model", "base", "") or "")


def _of(values: Values, section: str, key: str, default: Any) -> Any:
    return values.get(section, {}).get(key, default)


def _clock(stamp: float) -> str:
    return datetime.fromtimestamp(stamp).astimezone().strftime("%Y-%m-%d %H:%M %z")
