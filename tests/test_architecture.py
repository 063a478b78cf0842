"""The shape of the house: who may know whom, how long a file may be, and what is never done anywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from conftest import ROOT, child_environment

from so8t_fsm.cli import cli
from so8t_fsm.states import WORKING
from so8t_fsm.step import Step

MACHINE, WORK = ROOT / "so8t_fsm", ROOT / "so8t_ops"
FILES = sorted([*MACHINE.rglob("*.py"), *WORK.rglob("*.py")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
POINTS = PROJECT["entry-points"]["so8t.steps"]
HEAVY = {
    "torch", "transformers", "datasets", "peft", "trl", "accelerate", "sklearn", "pandas", "matplotlib", "scipy",
    "gguf",
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
UNSAFE = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
LONGEST = 400


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Every module a file imports, by its full name, also inside functions; ``from a import b`` counts as ``a.b``."""
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> list[str]:
    return list(imports(parsed(path), name_of(path).removesuffix(".py").replace("/", ".")))


def python(code: str) -> list[str]:
    """The words a child prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True).stdout.split()


def test_the_reader_of_imports_reads() -> None:
    """The tests below lean on it."""
    tree = ast.parse("import a.b, c\nfrom d import e\ndef f():\n    from .g import h\n    from ..i import j")
    assert sorted(imports(tree, "p.q.r")) == ["a.b", "c", "d.e", "p.i.j", "p.q.g.h"]


def test_the_work_knows_the_contract_and_nothing_else_of_the_machine() -> None:
    wrong = [f"{name_of(path)}: {name}" for path in WORK.rglob("*.py") for name in imports_of(path)
             if re.match(r"so8t_fsm\b", name) and not re.match(r"so8t_fsm\.step\b", name)]
    assert wrong == []


def test_the_machine_knows_no_work_and_no_torch() -> None:
    wrong = [f"{name_of(path)}: {name}" for path in MACHINE.rglob("*.py") for name in imports_of(path)
             if name.split(".")[0] in HEAVY | {"so8t_ops"}]
    assert wrong == []


def test_the_contract_drags_nothing_along() -> None:
    """Whoever writes a step imports one module; what it loads is small and knows no database."""
    loaded = python("import so8t_fsm.step, sys; print(*{m.split('.')[0] for m in sys.modules})")
    assert not set(loaded) & (HEAVY | {"sqlalchemy", "alembic", "so8t_ops", "numpy", "rich", "click"})


@pytest.mark.parametrize("name", POINTS)
def test_a_step_is_found_by_name_and_loads_nothing_heavy(name: str) -> None:
    """The machine loads a step's module to read its settings; torch belongs into its `run`."""
    module, _, attribute = POINTS[name].partition(":")
    found, state, *loaded = python(
        f"import sys, {module} as m\nfrom so8t_fsm.step import Step\nstep = m.{attribute}\n"
        "assert issubclass(step, Step)\nprint(step.name, step.state, *{m.split('.')[0] for m in sys.modules})")
    assert found == state == name
    assert not set(loaded) & HEAVY


def test_the_seven_steps_are_the_working_states() -> None:
    assert tuple(POINTS) == WORKING


def test_the_steps_say_what_they_depend_on() -> None:
    """`uses` names earlier steps only, `reads` settings that exist."""
    for place, name in enumerate(POINTS):
        step = EntryPoint(name, POINTS[name], "so8t.steps").load()
        assert issubclass(step, Step)
        assert set(step.uses) <= set(list(POINTS)[:place]), name
        models = {section: model for other in POINTS
                  for section, model in EntryPoint(other, POINTS[other], "so8t.steps").load().sections.items()}
        for prefix in step.reads:
            section, *path = prefix.split(".")
            fields = models[section].model_fields
            assert not path or path[0] in fields, f"{name} reads {prefix}"


def test_no_file_is_long() -> None:
    """One idea a file."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    found = next((k.value for k in call.keywords if k.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unsafe_is_called(path: Path) -> None:
    """No shell, no unsafe YAML, no pickle in any disguise, no code from a hub, no eval."""
    tree = parsed(path)
    assert not {name.split(".")[0] for name in imports_of(path)} & PICKLES
    for function, call in calls(tree):
        where = f"{name_of(path)}:{call.lineno}: {function}"
        assert keyword(call, "shell") in (None, False), where
        assert function not in UNSAFE, where
        assert keyword(call, "trust_remote_code") in (None, False), where
        assert keyword(call, "allow_pickle") in (None, False), where
        if function == "torch.load":
            assert keyword(call, "weights_only") is True, where
        if function in ("YAML", "ruamel.yaml.YAML"):
            kind = keyword(call, "typ") or (call.args and ast.literal_eval(call.args[0])) or "rt"
            assert kind in ("safe", "rt"), where


def test_the_guard_against_the_unsafe_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for text in ("import subprocess\nsubprocess.run('x', shell=True)", "import pickle", "from joblib import load",
                 "torch.load('x')", "torch.load('x', weights_only=False)", "yaml.load(s)", "YAML(typ='unsafe')",
                 "numpy.load('x', allow_pickle=True)", "f(trust_remote_code=True)", "eval('1')"):
        path = tmp_path / "bad.py"
        path.write_text(text)
        with pytest.raises(AssertionError):
            test_nothing_unsafe_is_called(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    """A docstring first, unless the file is empty."""
    tree = parsed(path)
    assert not tree.body or ast.get_docstring(tree), f"{name_of(path)} has no docstring"


# Documentation ------------------------------------------------------------------------------------------------------


def commands(group: click.Group, name: str = "so8t") -> Iterator[str]:
    context = click.Context(group)
    for inner in group.list_commands(context):
        found = group.get_command(context, inner)
        if isinstance(found, click.Group):
            yield from commands(found, f"{name} {inner}")
        else:
            yield f"{name} {inner}"


def documented() -> str:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("command", list(commands(cli)))
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"{re.escape(command)}\b", documented()), f"{command} is in no page of docs/ nor in README.md"


@pytest.mark.parametrize("option", sorted({
    opt for name in cli.list_commands(click.Context(cli)) for command in [cli.get_command(click.Context(cli), name)]
    if command is not None for parameter in command.params for opt in parameter.opts if opt.startswith("--")}))
def test_every_option_is_documented(option: str) -> None:
    assert re.search(rf"{re.escape(option)}\b", documented()), f"{option} is in no page of docs/ nor in README.md"


def test_the_docs_name_no_command_that_is_not_there() -> None:
    """What stands in backticks as a command line can be typed."""
    known = {name.split()[1] for name in commands(cli)}
    said = set(re.findall(r"`so8t(?: --home \S+)? ([a-z][a-z-]+)", documented()))
    assert said - known == set()


def test_every_module_of_the_machine_is_in_the_architecture() -> None:
    """docs/ARCHITECTURE.md has a table of the modules; one that is missing there was forgotten."""
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    modules = {path.name for path in MACHINE.glob("*.py") if path.name != "__init__.py"}
    assert {name for name in modules if name not in page} == set()
