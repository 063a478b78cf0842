"""The doctor: what it finds, what it advises, and that nothing it looks at can break it."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from so8t_fsm import doctor
from so8t_fsm.doctor import Check
from so8t_fsm.footprint import Shape, training_bytes

GiB = 1 << 30
SECRET = "hf_secretsecretsecret"
BOREA = {"model": {"base": "AXCXEPT/Borea-Phi-3.5-mini-Instruct-Jp"}}


def test_all_checks_on_this_machine_without_importing_torch(tmp_path: Path) -> None:
    code = ("import json, sys; from pathlib import Path; from so8t_fsm import doctor;"
            "report = doctor.as_json(doctor.checks(Path(sys.argv[1])));"
            "print(json.dumps({**report, 'heavy': sorted({'torch', 'huggingface_hub'} & set(sys.modules))}))")
    report = doctor.ask_python(code, 120, str(tmp_path))
    assert report["heavy"] == [] and report["ok"]
    found = {check["name"]: check for check in report["checks"]}
    assert list(found) == [
        "python", "home", "disk", "database", "clock", "llama.cpp", "autostart", "hub", "torch", "vram"]
    assert {found[name]["status"] for name in ("python", "home", "disk", "database", "clock", "hub")} == {"ok"}
    assert found["torch"]["status"] in ("ok", "warn") and found["torch"]["found"].startswith("torch ")
    assert all(check["advice"] for check in found.values() if check["status"] != "ok")


# Places -------------------------------------------------------------------------------------------------------------


def test_a_network_drive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.host, "is_network_path", lambda path: "nfs4 at /mnt/nas")
    check = doctor.home_path(tmp_path)
    assert check.status == "fail" and "nfs4 at /mnt/nas" in check.found and "--home" in check.advice


def test_a_synchronised_folder_is_warned_about_and_a_japanese_one_is_fine(tmp_path: Path) -> None:
    assert doctor.home_path(tmp_path / "OneDrive - Private" / "so8t").status == "warn"
    assert doctor.home_path(tmp_path / "ユーザー 名" / "so8t").status == "ok"


def test_disk_need_follows_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 30 * GiB})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.disk_space(tmp_path, {}).status == "ok"
    check = doctor.disk_space(tmp_path, BOREA)
    assert check.status == "fail" and "34.5 GiB needed" in check.found and "free 4.5 GiB" in check.advice
    assert doctor.disk_space(tmp_path, {"resources": {"min_free_disk": 31 * GiB}}).status == "fail"


# State --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound database of many pages at ``state/so8t.db`` of a home with awkward characters; returns the home."""
    monkeypatch.delenv("SO8T_DATABASE", raising=False)
    home = tmp_path / "家 #1 100%?"
    (home / "state").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(home / "state" / "so8t.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x TEXT UNIQUE)")
        connection.executemany("INSERT INTO t VALUES (?)", [(f"{n:>300}",) for n in range(2000)])
        connection.commit()
    return home


def test_a_sound_database_is_read_and_left_alone(state: Path) -> None:
    path = state / "state" / "so8t.db"
    before = path.read_bytes()
    assert doctor.database(state).status == "ok"
    assert path.read_bytes() == before


def test_a_damaged_database_is_found(state: Path) -> None:
    path = state / "state" / "so8t.db"
    data = bytearray(path.read_bytes())
    data[20 * 4096 : 24 * 4096] = os.urandom(4 * 4096)
    path.write_bytes(data)
    check = doctor.database(state)
    assert check.status == "fail" and "damaged" in check.found and "so8t resume" in check.advice
    path.write_bytes(b"no database at all" * 1000)
    assert doctor.database(state).status == "fail"


def test_no_database_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SO8T_DATABASE", raising=False)
    assert doctor.database(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_clock_set_back_is_noticed(state: Path) -> None:
    assert doctor.clock(state).status == "ok"
    future = time.time() + 9 * 3600
    os.utime(state / "state" / "so8t.db", (future, future))
    check = doctor.clock(state)
    assert check.status == "warn" and "set back" in check.found


# Sizes --------------------------------------------------------------------------------------------------------------


def test_parameters_of_phi_3_5_mini_are_exact() -> None:
    shape = Shape.of("AXCXEPT/Borea-Phi-3.5-mini-Instruct-Jp", {}, Path())
    assert shape is not None and shape.parameters == 3_821_079_552  # as its model card counts them


def test_shapes_come_from_a_local_config_or_from_the_settings(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps({
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100}))
    shape = Shape.of("own", {}, tmp_path)
    # By hand: qkv 64*128, o 64*64, gate-up 64*256, down 128*64, two norms; embeddings twice; last norm.
    assert shape is not None and shape.parameters == 2 * (8192 + 4096 + 16384 + 8192 + 128) + 2 * 6400 + 64
    tiny = {"layers": 2, "hidden_size": 64, "intermediate_size": 128, "heads": 4, "vocab_size": 100}
    assert Shape.of("quickstart:tiny-phi3", {"tiny": tiny}, tmp_path) == Shape(2, 64, 128, 4, 4, 100)
    assert Shape.of("somebody/unknown", {}, tmp_path) is None and Shape.of("", {}, tmp_path) is None
    (tmp_path / "own" / "config.json").write_text("{")
    assert Shape.of("own", {}, tmp_path) is None


def test_the_estimate_answers_to_every_setting() -> None:
    shape = Shape.of("phi-3.5-mini", {}, Path())
    assert shape is not None

    def need(model: dict[str, Any] | None = None, **training: Any) -> int:
        return training_bytes(shape, {"model": model or {}, "training": training})

    plain = need(batch_size=2, max_length=512)
    assert 2 * shape.parameters < plain < 16 * GiB
    assert need(batch_size=1, max_length=512) < plain < need(batch_size=2, max_length=1024)
    assert need(batch_size=2, max_length=512, gradient_checkpointing=True) < plain - 2 * GiB
    assert need({"dtype": "float32"}, batch_size=2, max_length=512) > plain + 2 * shape.parameters
    # Rank 16 on all four projections of Phi-3.5: 25.2 million weights of 16 bytes.
    lora = need(batch_size=2, max_length=512, lora={"r": 32}) - plain
    assert lora == 16 * 16 * 32 * (3072 + 9216 + 3072 + 3072 + 3072 + 16384 + 8192 + 3072)


@pytest.mark.parametrize(("free", "total", "status"), [(11, 12, "ok"), (8, 12, "warn"), (8, 8, "warn"), (6, 6, "fail")])
def test_vram_of_real_cards(free: int, total: int, status: str, tmp_path: Path) -> None:
    values = {**BOREA, "training": {"batch_size": 2, "max_length": 512, "gradient_checkpointing": True}}
    check = doctor.vram(tmp_path, values, [{"name": "RTX", "free": free * GiB, "total": total * GiB}])
    assert check.status == status and "RTX" in check.found


def test_vram_without_a_gpu(tmp_path: Path) -> None:
    tiny = {"layers": 2, "hidden_size": 64, "intermediate_size": 128, "heads": 4, "vocab_size": 100}
    assert doctor.vram(tmp_path, {"model": {"base": "quickstart:tiny-phi3", "tiny": tiny}}, []).status == "ok"
    assert doctor.vram(tmp_path, BOREA, []).status == "warn"
    assert doctor.vram(tmp_path, {"model": {"base": "who/knows"}}, []).status == "unknown"


# Outside ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A Hub that knows only whoami; ``answer`` and ``status`` may be changed."""
    told: dict[str, Any] = {"status": 200, "answer": {}, "seen": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/api/whoami-v2"
            if found:
                told["seen"].append(self.headers["Authorization"])
            body = json.dumps(told["answer"] if found else {}).encode()
            self.send_response(told["status"] if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told["values"] = {"upload": {"target": "hub", "repo_id": "taro/model", "token_env": "MY_TOKEN",
                                 "endpoint": f"http://127.0.0.1:{server.server_port}"}}
    monkeypatch.setenv("MY_TOKEN", SECRET)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield told
    server.shutdown()
    server.server_close()


def test_a_fine_grained_token_over_the_wire(hub_server: dict[str, Any]) -> None:
    scopes = [{"entity": {"name": "taro"}, "permissions": ["repo.content.read", "repo.write"]},
              {"entity": {"name": "lab"}, "permissions": ["repo.content.read"]}]
    hub_server["answer"] = {"type": "user", "name": "taro", "orgs": [{"name": "lab"}], "auth": {
        "accessToken": {"role": "fineGrained", "fineGrained": {"scoped": scopes}}}}
    check = doctor.hub(hub_server["values"])
    assert check == Check("hub", "ok", "taro, with write access")
    assert hub_server["seen"] == [f"Bearer {SECRET}"]
    hub_server["values"]["upload"]["repo_id"] = "lab/model"
    assert "no repo.write for lab" in doctor.hub(hub_server["values"]).found


@pytest.mark.parametrize(("role", "repo", "status", "word"), [
    ("write", "taro/model", "ok", "taro, with write access"),
    ("write", "lab/model", "ok", "taro"),
    ("write", "hanako/model", "fail", "is for taro"),
    ("read", "taro/model", "fail", "reads only"),
])
def test_token_rights(monkeypatch: pytest.MonkeyPatch, role: str, repo: str, status: str, word: str) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    me = {"name": "taro", "orgs": ["lab"], "role": role, "writes": []}
    monkeypatch.setattr(doctor, "ask_python", lambda *_: me)
    check = doctor.hub({"upload": {"target": "hub", "repo_id": repo, "token_env": "MY_TOKEN"}})
    assert (check.status, word in check.found) == (status, True), check
    assert (check.advice != "") == (status != "ok")


def test_a_refused_token_and_an_ill_hub(hub_server: dict[str, Any]) -> None:
    hub_server["status"] = 401
    check = doctor.hub(hub_server["values"])
    assert check.status == "fail" and "not valid" in check.found and SECRET not in repr(check)
    hub_server["status"] = 500
    assert doctor.hub(hub_server["values"]).status == "unknown"


def test_a_token_is_asked_for_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "not needed" in doctor.hub({}).found
    check = doctor.hub({"upload": {"target": "hub", "repo_id": "a/b"}})
    assert check.status == "fail" and "HF_TOKEN holds no token" in check.found


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_autostart_by_the_systemd_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert doctor.autostart().status == "unknown"
    units = tmp_path / "systemd" / "user"
    (units / "default.target.wants").mkdir(parents=True)
    (units / "so8t-resume.service").touch()
    assert doctor.autostart().status == "warn"
    (units / "default.target.wants" / "so8t-resume.service").symlink_to(units / "so8t-resume.service")
    assert doctor.autostart().status == "ok"


def test_llama_cpp_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.llama_cpp().status == "warn"
    tool = tmp_path / "llama-quantize"
    tool.touch(mode=0o755)
    if sys.platform != "win32":
        assert doctor.llama_cpp() == Check("llama.cpp", "ok", str(tool))


# The helper process and the report ----------------------------------------------------------------------------------


def test_missing_torch_fails_and_a_broken_one_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH", "raise ModuleNotFoundError(\"No module named 'torch'\")")
    assert [c.status for c in doctor.torch_and_vram(tmp_path, {})] == ["fail"]
    monkeypatch.setattr(doctor, "_TORCH", "raise OSError('WinError 126: c10.dll')")
    (check,) = doctor.guarded("torch", lambda: doctor.torch_and_vram(tmp_path, {}))
    assert check.status == "unknown" and "c10.dll" in check.found
    monkeypatch.setattr(doctor, "_TORCH", "import time; time.sleep(30)")
    monkeypatch.setattr(doctor, "TORCH_SECONDS", 0.3)
    (check,) = doctor.guarded("torch", lambda: doctor.torch_and_vram(tmp_path, {}))
    assert check.status == "unknown" and "no answer within 0.3 s" in check.found


def test_a_cuda_driver_beside_a_cpu_torch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ask_python", lambda *_: {"version": "2.9", "cuda": None, "hip": None, "devices": []})
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    torch, _ = doctor.torch_and_vram(tmp_path, {})
    assert torch.status == "warn" and "CUDA build" in torch.advice


def test_a_check_that_breaks_stops_no_other() -> None:
    def broken() -> Check:
        raise ZeroDivisionError("oops")

    (check,) = doctor.guarded("x", broken)
    assert check.status == "unknown" and "ZeroDivisionError: oops" in check.found


FOUND = [
    Check("home", "ok", "/a [red]b[/red]"), Check("hub", "fail", "no token", "make one"), Check("x", "unknown", "?"),
]


def test_the_table_survives_a_narrow_cp932_console() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp932", write_through=True)
    doctor.render([*FOUND, Check("home", "ok", "C:\\ユーザー\\太郎")], Console(file=stream, width=40))
    text = raw.getvalue().decode("cp932")
    assert "/a [red]b[/red]" in text and "-> make one" in text and "太郎" in text


def test_json() -> None:
    report = doctor.as_json(iter(FOUND))
    assert report["ok"] is False and json.loads(json.dumps(report)) == report
    assert report["checks"][1] == {"name": "hub", "status": "fail", "found": "no token", "advice": "make one"}
    assert doctor.as_json([FOUND[0], FOUND[2]])["ok"] is True
