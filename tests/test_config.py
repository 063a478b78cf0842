"""What YAML means, snapshots, and one clear line for every mistake a person can make."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from configuring import ROOT, SECTIONS, complaint, load
from hypothesis import given, settings
from hypothesis import strategies as st

from so8t_fsm import config
from so8t_fsm.config import Config, ConfigError
from so8t_fsm.settings import AutomationSettings, parse_duration

# --- what YAML means -------------------------------------------------------------------------------------------------

def test_yaml_1_2_scalars(tmp_path: Path) -> None:
    text = "a: 1e-5\nb: on\nc: yes\nd: no\ne: true\nf: 2024-01-01\ng: 12:30:45\nh: ~\ni: 010\nj: '1'\nk: C:\\data\n"
    text += 'l: "\\ud83d\\ude00"\n'  # as JSON writes what lies beyond 16 bits
    (tmp_path / "x.yaml").write_text(text)
    value = config.load_yaml_located(tmp_path / "x.yaml").value
    assert value == {"a": 1e-5, "b": "on", "c": "yes", "d": "no", "e": True, "f": "2024-01-01", "g": "12:30:45",
                     "h": None, "i": 10, "j": "1", "k": "C:\\data", "l": "😀"}
    assert isinstance(value["a"], float) and type(value["i"]) is int


def test_every_key_and_value_knows_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# 注\na:\n  日本: [1, {b: 2}]\n", encoding="utf-8")
    found = config.load_yaml_located(tmp_path / "x.yaml", name="x.yaml")
    assert found.at(("a",), key=True) == "x.yaml:2:1"
    assert found.at(("a", "日本"), key=True) == "x.yaml:3:3"
    assert found.at(("a", "日本", 1, "b")) == "x.yaml:3:15"
    assert found.at(("a", "日本", 1, "b"), key=True) == "x.yaml:3:12"
    assert found.at(("a", "missing", "deeper")) == "x.yaml:2:1", "what encloses it"


def test_bom_crlf_and_japanese_paths_with_spaces(tmp_path: Path) -> None:
    text = "\ufefftraining:\r\n  name: 日本語 モデル\r\n".encode()
    found = load(tmp_path, text, name="設定 ファイル/私の 設定.yaml")
    assert found.values["training"]["name"] == "日本語 モデル"
    assert found.provenance["training.name"] == "設定 ファイル/私の 設定.yaml:2:3"


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "unknown key": ("training:\n  batchsize: 4\n",
                    "2:3: unknown key 'batchsize' in training, did you mean 'batch_size'?"),
    "unknown nested key": ("training:\n  ppo:\n    clp: 0.1\n",
                           "3:5: unknown key 'clp' in training.ppo, did you mean 'clip'?"),
    "unknown key in a list": ("data:\n  sources:\n    - name: a\n      sahre: 1\n",
                              "4:7: unknown key 'sahre' in data.sources[0], did you mean 'share'?"),
    "unknown key of one kind": ("data:\n  places:\n    - {kind: remote}\n    - {kind: remote, path: x}\n",
                                "4:22: unknown key 'path' in data.places[1]; known are address, kind"),
    "missing in one kind": ("data:\n  places: [{kind: folder}]\n",
                            "2:12: data.places[0].path is missing; give it a value"),
    "unknown kind": ("data:\n  places: [{kind: foldr}]\n", "2:19: data.places[0].kind: foldr is not allowed, "
                     "did you mean 'folder'?"),
    "strange kind": ("data:\n  places: [{kind: [1]}]\n",
                     "2:19: data.places[0].kind: [1] is not allowed; known are folder, remote"),
    "no kind": ("data:\n  places: [{path: x}]\n", "2:12: data.places[0].kind is missing; give it a value"),
    "no mapping": ("data:\n  places: [x]\n", "2:12: data.places[0]: x is not allowed: must be a mapping of keys"),
    "pattern": ("data:\n  places: [{kind: remote, address: x y}]\n",
                "2:36: data.places[0].address: x y is not allowed: not of the right form (Where it is, as owner/name)"),
    "key with a line end": ('"a\\u2028\\u001b": 1\n', "1:1: unknown section 'a\\u2028\\x1b'; known are "
                            "automation, data, logging, notifications, resources, training"),
    "no near key": ("training:\n  ppo: {zzz: 1}\n", "2:9: unknown key 'zzz' in training.ppo; known are clip, epochs"),
    "unknown section": ("trainig:\n  batch_size: 4\n", "1:1: unknown section 'trainig', did you mean 'training'?"),
    "range": ("training:\n  batch_size: -1\n",
              "2:15: training.batch_size: -1 is not allowed: must be greater than or equal to 1"),
    "range in a list": ("data:\n  sources: [{name: a}, {name: b, share: 2.5}]\n",
                        "2:41: data.sources[1].share: 2.5 is not allowed: must be less than or equal to 1"),
    "missing in a list": ("data:\n  sources:\n    - share: 1\n",
                          "3:7: data.sources[0].name is missing; give it a value"),
    "type": ("training:\n  learning_rate: fast\n",
             "2:18: training.learning_rate: fast is not allowed: must be a number"),
    "text wanted": ("training:\n  name: 7\n", "2:9: training.name: 7 is not allowed: must be text; put it in quotes"),
    "boolean for a number": ("training:\n  batch_size: true\n",
                             "2:15: training.batch_size: true is not allowed: must be a number"),
    "choice": ("training:\n  optimizer: adam\n",
               "2:14: training.optimizer: adam is not allowed: must be 'adamw' or 'sgd'"),
    "section is a scalar": ("training: 4\n", "1:11: training: 4 is not allowed: must be a mapping of keys"),
    "rule of a whole model": ("automation:\n  backoff:\n    initial: 2h\n",
                              "2:3: automation.backoff: max must not be shorter than initial"),
    "duration": ("automation: {stop_grace: soon}\n", "1:26: automation.stop_grace: soon is not allowed: "
                 "must be a duration such as 30s, 3m, 1h30m, or a number of seconds"),
    "size": ("resources: {min_ram: 5XB}\n",
             "1:22: resources.min_ram: 5XB is not allowed: must be a size such as 512MiB or 10GB"),
    "step twice": ("automation: {steps: [a, a]}\n",
                   "1:21: automation.steps: [a, a] is not allowed: the step 'a' is listed twice"),
    "tab": ("training:\n\tbatch_size: 4\n", "2:1: a tab character; indent with spaces"),
    "tab later": ("training:\n  batch_size: 4\n\tname: a\n", "3:1: a tab character; indent with spaces"),
    "duplicate key": ("training:\n  name: a\n  name: b\n",
                      "3:3: the key 'name' is already set on line 2; keep one of the two"),
    "second colon": ("a: b: c\n",
                     "1:5: a second ':' in one value, or no ':' on the line above; put text with ': ' in quotes"),
    "open quote": ("training:\n  name: 'a\n", "2:9: a quote is opened and never closed; close it"),
    "open bracket": ("a: [1,\n", "2:1: a bracket is opened and never closed; close it"),
    "indent": ("training:\n  name: a\n batch_size: 1\n",
               "3:2: the indent does not match the lines above; line the keys up"),
    "no colon": ("training:\n  name: a\n  batch_size\n", "3:3: a key without ': ' after it; write it as 'key: value'"),
    "odd syntax": ("a: }\n",
                   "1:4: not YAML: expected the node content, but found '}'; check this line and the one above"),
    "backslash": ('a: "C:\\data"\n', "1:8: a backslash inside double quotes; write Windows paths in single quotes"),
    "tag": ("a: !!python/object:os.system x\n",
            "1:4: the tag tag:yaml.org,2002:python/object:os.system is not allowed; write a plain value"),
    "recursion": ("a: &x [*x]\n", "1:4: an alias inside its own anchor; write the value out"),
    "merge": ("<<: {a: 1}\n", "1:1: merge keys (<<) are not supported; use 'extends: FILE' at the top level"),
    "half a character": ('training:\n  name: "\\ud83d"\n', "2:9: half of a surrogate pair; write the character itself"),
    "infinite": ("training:\n  learning_rate: .inf\n", "2:18: .inf is not a finite number; write a number"),
    "control character": ("a: \x00\n", "1:4: a control character; remove it"),
    "empty": ("", "1:1: the file is empty; write at least one 'section:' into it, or remove it"),
    "only comments": ("# nothing\n", "1:1: the file is empty; write at least one 'section:' into it, or remove it"),
    "list": ("- 1\n", "1:1: the top level must be a mapping; write it as 'section:' with its keys indented below"),
    "two documents": ("a: 1\n---\nb: 2\n", "2:1: a second document after '---'; keep one document a file"),
    "cp932": ("training:\n  name: 日本語\n".encode("cp932"),
              "2:9: not UTF-8, it looks like Shift_JIS; save the file as UTF-8"),
    "UTF-16": ("training: {}\n".encode("utf-16"), "1:1: not UTF-8; save the file as UTF-8"),
    "extends nothing": ("extends: no.yaml\n",
                        "1:10: extends a file that is not there: configs/no.yaml; correct the name"),
    "extends a list": ("extends: [a]\n", "1:10: extends: [a] is not allowed: must be the name of one file"),
    "extends itself": ("extends: my.yaml\n",
                       "1:10: extends goes in a circle back to configs/my.yaml; remove one of the lines"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, case: str) -> None:
    text, line = MISTAKES[case]
    assert complaint(tmp_path, text) == (f"configs/my.yaml:{line}",)


def test_all_mistakes_are_told_and_the_first_says_how_many(tmp_path: Path) -> None:
    text = "training:\n  batch_size: 0\n  learning_rate: -1\ndat: {}\n"
    lines = complaint(tmp_path, text)
    assert sorted(line.split(": ")[0] for line in lines) == [
        "configs/my.yaml:2:15", "configs/my.yaml:3:18", "configs/my.yaml:4:1"]
    with pytest.raises(ConfigError, match=r" \(and 2 more\)$"):
        load(tmp_path, text)


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "configs" / "my.yaml", SECTIONS, home=tmp_path, environ={})
    assert str(caught.value) == "no configuration at configs/my.yaml; `so8t init DIR` makes one"


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^configs: cannot be read: "):
        (tmp_path / "configs").mkdir()
        config.load(tmp_path / "configs", SECTIONS, home=tmp_path, environ={})


SCRAPS = [
    "training", "batch_size", "data", "sources", "notifications", "urls", "name", ":", ": ", " ", "  ", "\n", "\t",
    "- ", "[", "]", "{", "}", ",", "'", '"', "#", "&a", "*a", "!x", "|", ">", "?", "%", "---", "...", "<<", "1", "-1",
    "1e-5", "1e999", "0o9", "0x", "~", "日本", "\x07", "\u2028", "\x85", "\r", "\\", "@", "true", "extends",
    "my.yaml", "2024-13-45",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(SCRAPS), max_size=25))
def test_whatever_is_written_there_is_an_answer_of_one_line(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            load(Path(folder), "".join(parts))
        except ConfigError as error:
            for line in error.all:
                assert re.match(r"configs/my\.yaml(:[1-9]\d*:[1-9]\d*)?: \S", line), line
                assert len(line.splitlines()) == 1, line


def test_anchors_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "anchors" in complaint(tmp_path, "\n".join(lines))[0]


# --- snapshots, hashes, differences ----------------------------------------------------------------------------------

def test_a_snapshot_outlives_settings_that_come_and_go(tmp_path: Path) -> None:
    raw = json.loads(load(tmp_path, "training: {batch_size: 3}\ndata: {sources: [{name: a}]}\n").to_json())
    raw["values"]["training"]["gone"] = 1
    raw["values"]["data"]["sources"][0]["gone"] = 1
    del raw["values"]["training"]["ppo"]["epochs"], raw["values"]["logging"]
    raw["values"]["theirs"] = {"k": 1}
    raw["later"] = True
    found = Config.from_json(json.dumps(raw), SECTIONS)
    assert found.values["training"]["batch_size"] == 3 and found.values["training"]["ppo"]["epochs"] == 2
    assert "gone" not in found.values["training"] and found.values["data"]["sources"] == [{"name": "a", "share": 1.0}]
    assert found.values["theirs"] == {"k": 1} and found.logging.directory == "logs"
    assert found.provenance["training.batch_size"] == "configs/my.yaml:1:12"
    assert found.provenance["logging.level"] == "default"
    raw["values"]["training"]["batch_size"] = 0
    with pytest.raises(ConfigError, match=r"^the settings of this run: training.batch_size: 0 is not allowed"):
        Config.from_json(json.dumps(raw), SECTIONS)


def test_recovery_changes_a_snapshot_as_it_changes_a_file(tmp_path: Path) -> None:
    text = "training: {batch_size: 8, ppo: {clip: 0.3}}\n"
    overrides = {"training.ppo.clip": (0.1, "r"), "training.batch_size": (4, "oom")}
    whole = load(tmp_path, text, overrides=overrides)
    later = Config.from_json(load(tmp_path, text).to_json(), SECTIONS).with_overrides(overrides)
    assert (later.values, later.provenance) == (whole.values, whole.provenance)
    with pytest.raises(ConfigError, match=r"^recovery rule r: unknown key 'clp' in training.ppo, did you"):
        whole.with_overrides({"training.ppo.clp": (1, "r")})


def test_secrets_stay_in_the_typed_section(tmp_path: Path) -> None:
    secret = "discord://123456/s3cr3t"
    found = load(tmp_path, "training:\n", environ={"SO8T__NOTIFICATIONS__URLS": f"{secret} mailto://u:s3cr3t@example.com"})
    assert found.notifications.urls[0].get_secret_value() == secret
    assert len(found.notifications.urls) == 2
    for text in (found.to_json(), repr(found), str(found.section("notifications"))):
        assert "s3cr3t" not in text and "123456" not in text
    assert Config.from_json(found.to_json(), SECTIONS).notifications.urls == ()
    later = found.with_overrides({"training.batch_size": (1, "r")})
    assert later.notifications.urls[0].get_secret_value() == secret
    lines = complaint(tmp_path, "training:\n", environ={"SO8T__NOTIFICATIONS__URLS": "{s3cr3t: s3cr3t}"},
                      sets=["notifications.desktop=[s3cr3t", "notifications.urls=[5, 123456]"])
    assert lines and "s3cr3t" not in " ".join(lines) and "123456" not in " ".join(lines)


def test_select_takes_whole_words(tmp_path: Path) -> None:
    values = {"a": {"b": 1, "bc": 2, "d": {"e": [1], "f": {}}}, "ab": {"b": 3}}
    assert config.select(values, ["a.b", "a.d"]) == {"a.b": 1, "a.d.e": [1], "a.d.f": {}}
    assert config.select(values, ["a"]) == {"a.b": 1, "a.bc": 2, "a.d.e": [1], "a.d.f": {}}
    assert config.select(values, ["nothing"]) == {}


def test_differences_read_like_yaml(tmp_path: Path) -> None:
    old = load(tmp_path, "training: {learning_rate: 1e-5, batch_size: 4}\n")
    new = load(tmp_path, "training: {learning_rate: 2e-5, batch_size: 2, shuffle: false}\n")
    assert [str(c) for c in config.diff(old.values, new.values, ["training.learning_rate", "training.shuffle"])] == [
        "training.learning_rate 1e-5 → 2e-5", "training.shuffle true → false"]
    assert len(config.diff(old.values, new.values)) == 3
    assert config.diff(old.values, old.values, ["training"]) == []
    stored, now = (config.select(c.values, ["training.ppo", "training.learning_rate"]) for c in (old, new))
    assert [str(c) for c in config.diff(stored, now, ["training"])] == ["training.learning_rate 1e-5 → 2e-5"]
    assert [str(c) for c in config.diff({"a": {"x": "", "y": [1e-7]}}, {"a": {"z": {}}})] == [
        "a.z null → {}", 'a.x "" → null', "a.y [1e-7] → null"]


@pytest.mark.parametrize(("text", "seconds"), [
    ("3m", 180), ("180s", 180), ("180", 180), ("1h30m", 5400), ("500 ms", 0.5), ("1.5m", 90), ("2D", 172800),
    (" 1 m 5 s ", 65),
])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert AutomationSettings.model_validate({"checkpoint_interval": text}).checkpoint_interval == seconds


@pytest.mark.parametrize("text", ["", "m", "3 minutes", "1h-5m", "3m nonsense", "nan", "-5", "0"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        AutomationSettings.model_validate({"checkpoint_interval": text})


def test_sizes(tmp_path: Path) -> None:
    found = load(tmp_path, "resources: {min_free_disk: 10GB, min_ram: 512MiB, min_vram: 1024}\n")
    assert (found.resources.min_free_disk, found.resources.min_ram, found.resources.min_vram) == (10**10, 2**29, 1024)
    assert type(found.values["resources"]["min_ram"]) is int


# --- the files that come along, and the page about them --------------------------------------------------------------

@pytest.mark.parametrize("name", ["quickstart", "complete_so8t_pipeline", "rtx3060"])
def test_the_files_that_come_along_are_valid(name: str) -> None:
    from so8t_fsm import registry

    found = config.load(ROOT / "configs" / f"{name}.yaml", registry.sections(), environ={}, home=ROOT)
    for step in registry.pipeline(found.automation.steps):
        for prefix in step.reads:
            assert config.select(found.values, [prefix]), f"{step.name} reads {prefix}, which is no setting"
    assert {"model", "data", "training", "conversion", "benchmark", "upload"} <= set(found.values)


def test_the_complete_file_sets_and_explains_every_setting_in_both_languages() -> None:
    from so8t_fsm import registry

    found = config.load(ROOT / "configs" / "complete_so8t_pipeline.yaml", registry.sections(), environ={}, home=ROOT)
    assert [key for key, where in found.provenance.items() if where == "default"] == []
    lines = (ROOT / "configs" / "complete_so8t_pipeline.yaml").read_text(encoding="utf-8").splitlines()
    for key, where in found.provenance.items():
        n = int(where.split(":")[1]) - 1
        above = []
        while n and lines[n - 1].lstrip().startswith("#"):
            n -= 1
            above.append(lines[n])
        assert any(not line.isascii() for line in above), f"{key}: no Japanese comment above it"
        assert any(line.isascii() and len(line.strip()) > 4 for line in above), f"{key}: no English comment above it"


def test_the_page_holds_the_table_of_every_setting() -> None:
    from so8t_fsm import config_reference

    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = config_reference.reference(config_reference.all_sections())
    assert config_reference.in_page(page, table) == page, (
        "run `python -m so8t_fsm.config_reference --update docs/configuration.md`")
    assert "`training.batch_size`" in table and "`automation.backoff.max`" in table


def test_importing_the_configuration_is_light() -> None:
    script = ("import sys, so8t_fsm.config\n"
              "heavy = {'torch', 'numpy', 'ruamel', 'transformers', 'so8t_ops'}\n"
              "print(sorted({m.split('.')[0] for m in sys.modules} & heavy))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
