"""Publishing: what goes out, its card and its receipt, and a small Hub on the loopback address to send it to."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from so8t_fsm import artifacts
from so8t_fsm.step import StepFailure
from so8t_fsm.testing import run_step
from so8t_ops.hub import client
from so8t_ops.hub.errors import as_step_failure, redact, translated
from so8t_ops.hub.settings import UploadSettings
from so8t_ops.upload import Upload

REPO = "me/so8t-test"
SECRET = "hf_" + "x" * 30


def share(right: int, n: int) -> dict[str, Any]:
    return {"value": right / n, "right": right, "n": n, "low": 0.1, "high": 0.9}


SUMMARY = {
    "items": 10, "synthetic_items": 4, "declared": {"confidence": 0.95},
    "verdict": {"outcome": "better", "en": "C is better.", "ja": "C は優れています。"},
    "variants": {"A": {"name": "base", "status": "run", "accuracy": share(3, 10)},
                 "B": {"name": "warm start", "status": "not run", "reason": "no such adapter"},
                 "C": {"name": "PPO", "status": "run", "accuracy": share(8, 10)}}}
INDEX = [{"name": "SO8T", "results": [{
    "task": {"type": "text-classification"}, "dataset": {"type": "so8t-test", "name": "test", "split": "test"},
    "metrics": [{"type": "accuracy", "name": "Accuracy", "value": 0.8}]}]}]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    files: dict[str, dict[str, bytes]] = {
        "collecting": {"provenance.json": b"{}"},
        "preprocessing": {"dataset_report.html": b"<!doctype html>data"},
        "training": {"model.json": b'{"base": "owner/Base-3.5", "adapters": {}}'},
        "integrating": {"gguf/so8t-f16.gguf": b"GGUF" + bytes(range(256)) * 9000, "certificate.json": b'{"ok": true}',
                        "gguf_check.json": b"{}", "merged/config.json": b"{}", "merged/model.safetensors": b"w" * 99,
                        "merged/README.md": b"a card from elsewhere"},
        "evaluating": {"abc_report.html": b"<!doctype html>abc", "summary.json": json.dumps(SUMMARY).encode(),
                       "model-index.json": json.dumps(INDEX).encode(), "items.parquet": b"not published"}}
    made = {}
    for step, content in files.items():
        made[step] = tmp_path / "in" / step / "1"
        for name, data in content.items():
            (made[step] / name).parent.mkdir(parents=True, exist_ok=True)
            (made[step] / name).write_bytes(data)
    rows = [{"source": "made|here", "licence": "CC0-1.0", "synthetic": k < 2} for k in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), made["preprocessing"] / "train.parquet")
    for directory in made.values():
        artifacts.seal(directory)
    return made


def upload(
    home: Path, inputs: dict[str, Path], *, attempt: int = 1, stop_when: Any = None, **settings: Any,
) -> Path | None:
    config = {"upload": {"repo_id": REPO, **settings}}
    return run_step(Upload(), config, home, inputs, attempt=attempt, stop_when=stop_when)[0]


def read(directory: Path | None, name: str) -> Any:
    assert directory is not None
    return json.loads((directory / name).read_text("utf-8"))


def tree(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in artifacts.walk_files(directory)}


# --- the folder --------------------------------------------------------------------------------------------------

PUBLISHED = {"README.md", "so8t-f16.gguf", "abc_report.html", "dataset_report.html", "provenance.json",
             "certificate.json", "gguf_check.json", "evaluation.json"}


def test_the_folder_holds_the_model_and_the_receipt_says_so(tmp_path: Path, inputs: dict[str, Path]) -> None:
    receipt = read(upload(tmp_path, inputs), "receipt.json")
    there = tree(tmp_path / "hub" / REPO)
    assert set(there) == set(receipt["files"]) == PUBLISHED
    assert there["so8t-f16.gguf"] == (inputs["integrating"] / "gguf/so8t-f16.gguf").read_bytes()
    for name, entry in receipt["files"].items():
        assert entry == {"sha256": hashlib.sha256(there[name]).hexdigest(), "bytes": len(there[name])}
    artifacts.verify(tmp_path / "hub" / REPO)
    assert [p.name for p in (tmp_path / "hub" / "me").iterdir()] == ["so8t-test"]


def test_the_same_upload_has_the_same_receipt_wherever_and_whenever(tmp_path: Path, inputs: dict[str, Path]) -> None:
    first, again = upload(tmp_path, inputs), upload(tmp_path, inputs, attempt=2)
    elsewhere = upload(tmp_path / "other home", inputs)
    manifests = [artifacts.Manifest.load(d) for d in (first, again, elsewhere) if d]
    assert len(manifests) == 3 and manifests[0].files == manifests[1].files == manifests[2].files
    assert set(manifests[0].files) == {"receipt.json", "README.md"}
    assert set(manifests[0].volatile) == {"delivery.json"}
    assert [read(d, "delivery.json")["changed"] for d in (first, again)] == [True, False]
    assert str(tmp_path) not in (first / "receipt.json").read_text() + (first / "README.md").read_text()  # type: ignore


def test_the_merged_model_comes_along_when_asked_and_our_card_wins(tmp_path: Path, inputs: dict[str, Path]) -> None:
    upload(tmp_path, inputs, include_merged=True)
    there = tree(tmp_path / "hub" / REPO)
    assert set(there) == PUBLISHED | {"config.json", "model.safetensors"}
    assert b"from elsewhere" not in there["README.md"] and b"AutoModelForCausalLM" in there["README.md"]


def test_the_card_is_one_the_hub_reads(tmp_path: Path, inputs: dict[str, Path]) -> None:
    from huggingface_hub import ModelCard

    done = upload(tmp_path, inputs)
    assert done is not None
    text = (done / "README.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["language"] == ["ja", "en"]
    assert front["base_model"] == "owner/Base-3.5"
    assert front["model-index"][0]["name"] == "so8t-test"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.8
    card = ModelCard(text)
    assert card.data.eval_results[0].metric_type == "accuracy"
    assert "| A (base) | 30.0% | 10.0 to 90.0 | 10 |" in text
    assert "| B (warm start) | not run | | |" in text and "4 of 10 evaluated items are synthetic" in text
    assert "| made\\|here | CC0-1.0 | 5 | 2 |" in text and "\n\n\n" not in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3 and all(line.startswith("|") for block in tables for line in block.strip().splitlines())


def test_what_was_not_evaluated_has_no_model_index(tmp_path: Path, inputs: dict[str, Path]) -> None:
    (inputs["evaluating"] / "model-index.json").write_text("[]")
    artifacts.seal(inputs["evaluating"])
    done = upload(tmp_path, inputs)
    assert done is not None and "model-index" not in (done / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("step", "name", "message"), [
    ("integrating", "gguf/so8t-f16.gguf", r"integrating committed no gguf/\*.gguf"),
    ("evaluating", "abc_report.html", "evaluating committed no abc_report.html"),
    ("collecting", "provenance.json", "collecting committed no provenance.json")])
def test_a_missing_piece_is_refused(
    tmp_path: Path, inputs: dict[str, Path], step: str, name: str, message: str,
) -> None:
    (inputs[step] / name).unlink()
    artifacts.seal(inputs[step])
    with pytest.raises(StepFailure, match=message) as failure:
        upload(tmp_path, inputs)
    assert failure.value.state == "data_invalid" and failure.value.hint == f"so8t rerun --from {step}"
    assert not (tmp_path / "hub").exists()


def test_a_stop_is_heard_and_the_next_attempt_completes(tmp_path: Path, inputs: dict[str, Path]) -> None:
    sending = {"n": 0}

    def stop(seen: list[dict[str, Any]]) -> bool:
        sending["n"] += 1
        return sending["n"] > 9

    assert upload(tmp_path, inputs, stop_when=stop) is None
    assert not (tmp_path / "hub" / REPO).exists()
    assert upload(tmp_path, inputs, attempt=2) is not None
    assert set(tree(tmp_path / "hub" / REPO)) == PUBLISHED


@pytest.mark.parametrize("repo_id", ["one", "../x", "a/..", "a/b/c", "a/b..c", "/b", "a/ b"])
def test_a_bad_name_is_refused(repo_id: str) -> None:
    with pytest.raises(ValidationError):
        UploadSettings(repo_id=repo_id)


# --- the Hub -----------------------------------------------------------------------------------------------------

class SmallHub(BaseHTTPRequestHandler):
    """As much of the Hub as one model repository of small files needs."""

    def do_GET(self) -> None:
        hub: Any = self.server
        path = self.path.split("?")[0]
        if path in hub.faults:
            return self.answer(hub.faults[path], {"error": "as told"})
        if path == "/api/whoami-v2":
            if self.headers.get("Authorization") != f"Bearer {SECRET}":
                return self.answer(401, {"error": "Invalid credentials in Authorization header"})
            return self.answer(200, hub.me)
        if path == f"/api/models/{REPO}" and hub.private is not None:
            return self.answer(200, {"id": REPO, "sha": f"{len(hub.commits):040x}", "private": hub.private,
                                     "siblings": [], "tags": []})
        if path.startswith(f"/api/models/{REPO}/tree/"):
            return self.answer(200, [
                {"type": "file", "path": name, "size": len(data),
                 "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()} for name, data in hub.files.items()])
        self.answer(404, {"error": "not here"})

    def do_POST(self) -> None:
        hub: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if path in hub.faults:
            return self.answer(hub.faults[path], {"error": "as told"})
        if path == "/api/repos/create":
            if hub.private is not None:
                return self.answer(409, {"error": "You already created this model repo", "url": self.url()})
            asked = json.loads(body)
            hub.private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
            return self.answer(200, {"url": self.url()})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.startswith(f"/api/models/{REPO}/preupload/"):
            asked = json.loads(body)["files"]
            return self.answer(200, {"files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        if path.startswith(f"/api/models/{REPO}/commit/"):
            lines = [json.loads(line) for line in body.splitlines()]
            sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines if line["key"] == "file"}
            hub.commits.append(sorted(sent))
            hub.files.update({name: hub.spoil(name, data) for name, data in sent.items()})
            return self.answer(200, {"commitUrl": f"{self.url()}/commit/{len(hub.commits):040x}", "hookOutput": "",
                                     "commitOid": f"{len(hub.commits):040x}"})
        self.answer(404, {"error": "not here"})

    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{REPO}"

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import huggingface_hub.constants

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    server.me = {"name": "me", "orgs": [{"name": "Guild"}], "auth": {"accessToken": {"role": "write"}}}
    server.private, server.files, server.commits, server.faults = None, {".gitattributes": b"x"}, [], {}
    server.spoil = lambda _, data: data
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("SO8T_TEST_TOKEN", SECRET)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # as prepare() does before the import
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def to_hub(home: Path, inputs: dict[str, Path], hub: Any, **settings: Any) -> Path | None:
    return upload(home, inputs, target="hub", endpoint=hub.address, token_env="SO8T_TEST_TOKEN", **settings)


def test_the_hub_gets_every_file_once(tmp_path: Path, inputs: dict[str, Path], hub: Any) -> None:
    first = to_hub(tmp_path, inputs, hub)
    receipt = read(first, "receipt.json")
    assert hub.private is True and hub.commits == [sorted(PUBLISHED)]
    assert {n: hashlib.sha256(d).hexdigest() for n, d in hub.files.items() if n != ".gitattributes"} == {
        n: e["sha256"] for n, e in receipt["files"].items()}
    assert receipt["commit"] == f"{1:040x}"
    del hub.files["certificate.json"]
    again = to_hub(tmp_path, inputs, hub, attempt=2)
    assert hub.commits[1:] == [["certificate.json"]]
    third = to_hub(tmp_path, inputs, hub, attempt=3)
    assert len(hub.commits) == 2 and read(third, "delivery.json")["changed"] is False
    assert "receipt.json" in artifacts.Manifest.load(again).volatile  # type: ignore[arg-type]
    everything = "".join(p.read_text("utf-8") for d in (first, again, third) if d for p in artifacts.walk_files(d))
    assert SECRET not in everything


def test_a_file_that_arrives_spoilt_is_noticed(tmp_path: Path, inputs: dict[str, Path], hub: Any) -> None:
    hub.spoil = lambda name, data: data[:-1] if name.endswith(".gguf") else data
    with pytest.raises(StepFailure, match="sha256 of a file is not ours") as failure:
        to_hub(tmp_path, inputs, hub)
    assert failure.value.state == "network_failed"


def test_a_public_repository_is_not_used_for_a_private_model(tmp_path: Path, inputs: dict[str, Path], hub: Any) -> None:
    hub.private = False
    with pytest.raises(StepFailure, match="is public on the Hub and upload.private is true") as failure:
        to_hub(tmp_path, inputs, hub)
    assert failure.value.state == "hub_refused" and not hub.commits


@pytest.mark.parametrize(("me", "message"), [
    ({"name": "me", "auth": {"accessToken": {"role": "read"}}}, "the token of me reads only"),
    ({"name": "you", "orgs": [{"name": "club"}]}, "you is not me and not a member of it"),
    ({"name": "me", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": [
        {"entity": {"name": "me"}, "permissions": ["repo.content.read"]}]}}}}, "has no repo.write for me")])
def test_a_token_without_rights_is_refused_before_anything_is_sent(
    tmp_path: Path, inputs: dict[str, Path], hub: Any, me: dict[str, Any], message: str,
) -> None:
    hub.me = me
    with pytest.raises(StepFailure, match=message) as failure:
        to_hub(tmp_path, inputs, hub)
    assert failure.value.state == "hub_refused" and failure.value.hint and hub.private is None


def test_rights_through_an_organisation_or_a_fine_grained_token_are_enough(hub: Any) -> None:
    settings = UploadSettings(target="hub", endpoint=hub.address, token_env="SO8T_TEST_TOKEN")
    assert client.check_token(client.open_api(settings), "guild/model") == "me"
    hub.me = {"name": "me", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": [
        {"entity": {"name": "me"}, "permissions": ["repo.write"]}]}}}}
    assert client.check_token(client.open_api(settings), REPO) == "me"


def test_an_expired_token_is_refused_and_never_shown(
    tmp_path: Path, inputs: dict[str, Path], hub: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SO8T_TEST_TOKEN", "hf_expired")
    with pytest.raises(StepFailure, match=r"the Hub refused \(401\)") as failure:
        to_hub(tmp_path, inputs, hub)
    assert failure.value.state == "hub_refused" and "token" in failure.value.hint
    assert "hf_expired" not in str(failure.value)


def test_no_token_is_refused(
    tmp_path: Path, inputs: dict[str, Path], hub: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SO8T_TEST_TOKEN")
    with pytest.raises(StepFailure, match="SO8T_TEST_TOKEN holds no token") as failure:
        to_hub(tmp_path, inputs, hub)
    assert failure.value.state == "hub_refused"


@pytest.mark.parametrize(("path", "status", "state"), [
    ("/api/whoami-v2", 503, "network_failed"), ("/api/repos/create", 403, "hub_refused"),
    (f"/api/models/{REPO}/commit/main", 500, "network_failed"),
    (f"/api/models/{REPO}/commit/main", 413, "hub_refused")])
def test_status_codes_become_failure_states(
    tmp_path: Path, inputs: dict[str, Path], hub: Any, path: str, status: int, state: str,
) -> None:
    hub.faults[path] = status
    with pytest.raises(StepFailure, match=str(status)) as failure:
        to_hub(tmp_path, inputs, hub)
    assert failure.value.state == state


def test_nobody_listening_is_a_network_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    server.server_close()
    monkeypatch.setenv("SO8T_TEST_TOKEN", SECRET)
    api = client.open_api(UploadSettings(target="hub", endpoint=address, token_env="SO8T_TEST_TOKEN"))
    with pytest.raises(StepFailure, match="could not be reached") as failure:
        client.check_token(api, REPO)
    assert failure.value.state == "network_failed"


def test_the_cause_counts_and_not_the_wrapping() -> None:
    def wrapped(cause: BaseException) -> BaseException:
        error = RuntimeError("Error while uploading 'x' to the Hub.")
        error.__cause__ = cause
        return error

    failure = as_step_failure(wrapped(ConnectionResetError("peer")))
    assert failure is not None and failure.state == "network_failed"
    assert as_step_failure(wrapped(OSError(errno.ENOSPC, "No space left on device"))) is None
    assert as_step_failure(ZeroDivisionError()) is None
    with pytest.raises(ZeroDivisionError), translated():
        _ = 1 / 0
    assert redact(f"Bearer {SECRET} and {SECRET}") == "Bearer *** and hf_***"


def test_the_machine_waits_for_the_network_only_when_it_is_used(tmp_path: Path) -> None:
    step = Upload()
    assert step.needs({}, tmp_path, tmp_path).network == ()
    hub = {"upload": {"target": "hub", "endpoint": "https://hub.example"}}
    assert step.needs(hub, tmp_path, tmp_path).network == ("hub.example:443",)
