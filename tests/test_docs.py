"""The documentation says what is there: commands, settings, modules, targets, files, links."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from so8t_fsm import cli_reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"),
                ROOT / "recovery_rules" / "README.md", ROOT / "state" / "README.md"])
READMES = ("README.md", "README.ja.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- the command line -------------------------------------------------------------------------------------------------

def test_the_page_of_the_commands_is_what_they_say() -> None:
    assert read("docs/cli.md") == cli_reference.reference(), "run `make docs`"


def test_every_command_is_on_the_page_with_an_example() -> None:
    page = read("docs/cli.md")
    names = dict(cli_reference.commands())
    assert {"so8t resume", "so8t state", "so8t config show"} <= set(names)
    for name, command in names.items():
        assert f"\n## {name}\n" in page
        if name != "so8t":
            assert "Example: so8t " in (command.help or ""), f"{name} --help has no example"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def test_help_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert read("docs/cli.md") == cli_reference.reference()


# --- the configuration ------------------------------------------------------------------------------------------------

def test_every_setting_is_documented() -> None:
    from so8t_fsm import config, registry

    page = read("docs/configuration.md")
    loaded = config.load(None, registry.sections(), environ={})
    missing = [key for key in config.flatten(loaded.values) if f"`{key}" not in page]
    assert missing == [], "run `make docs`"


# --- the architecture -------------------------------------------------------------------------------------------------

TOUCHES = {"fs", "db", "process", "network", "clock", "random"}
EVIDENCE = {
    "sqlalchemy": "db", "sqlite3": "db", "alembic": "db", "psycopg": "db", "subprocess": "process",
    "socket": "network", "shutil": "fs", "tempfile": "fs", "secrets": "random", "random": "random",
}
"""Who imports the module on the left touches what stands on the right."""
FILES = {"read_text", "write_text", "read_bytes", "write_bytes", "iterdir", "mkdir", "unlink", "is_dir", "exists"}
"""Who calls one of these touches the file system."""
IMPURE = {*EVIDENCE, "os", "ctypes", "signal", "time", "threading", "psutil", "pynvml", "urllib.request",
          "so8t_fsm.host", "so8t_fsm.store", "so8t_fsm.resources"}


def tables() -> dict[str, dict[str, str]]:
    """The module tables of the page: heading to module to what it touches."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in read("docs/ARCHITECTURE.md").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif match := re.fullmatch(r"\| `([\w/]+(?:\.py|/))` \| (.+) \| ([\w, ]+) \|", line):
            found.setdefault(heading, {})[match[1]] = match[3]
    return found


def evidence(path: Path) -> set[str]:
    """Modules that a file imports anywhere, type checking left out, and ``.name`` of what it calls."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names.add(f".{node.func.attr}")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def test_every_module_of_the_machine_is_in_the_table() -> None:
    package = ROOT / "so8t_fsm"
    modules = {p.name for p in package.glob("*.py")} - {"__init__.py"}
    modules |= {f"{p.parent.name}/" for p in package.glob("*/__init__.py")} - {"cli/"}
    modules |= {f"cli/{p.name}" for p in (package / "cli").glob("*.py")}
    assert set(tables()["Modules of the machine"]) == modules


def test_every_step_and_package_of_the_work_is_in_the_table() -> None:
    package = ROOT / "so8t_ops"
    modules = {p.name for p in package.glob("*.py")} - {"__init__.py"}
    modules |= {f"{p.parent.name}/" for p in package.glob("*/__init__.py")}
    assert set(tables()["Modules of the work"]) == modules


@pytest.mark.parametrize(
    "heading,package", [("Modules of the machine", "so8t_fsm"), ("Modules of the work", "so8t_ops")])
def test_the_impure_column_is_true(heading: str, package: str) -> None:
    for module, said in tables()[heading].items():
        touches = set(said.split(", "))
        assert touches == {"no"} or touches <= TOUCHES, f"{module}: {said}"
        path = ROOT / package / module
        files = sorted(path.rglob("*.py")) if module.endswith("/") else [path]
        seen = {name for file in files for name in evidence(file)}
        if touches == {"no"}:
            assert not seen & IMPURE, f"{module} imports {seen & IMPURE}"
        if package == "so8t_fsm":
            for name, what in [*EVIDENCE.items(), *((f".{method}", "fs") for method in FILES)]:
                assert name not in seen or what in touches, f"{module} has {name}, so it touches {what}"


# --- what the READMEs tell people to type -----------------------------------------------------------------------------

def blocks(name: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(r"^ *```[a-z]*\n(.*?)^ *```", read(name), re.M | re.S)


def typed(name: str) -> Iterator[list[str]]:
    """Every command of the page, in blocks and between backticks, as words."""
    lines = [line.strip().lstrip("$> ") for block in blocks(name) for line in block.splitlines()]
    for text in [*lines, *re.findall(r"`([^`\n]+)`", read(name))]:
        text = re.sub(r"^\.venv[\\/](Scripts|bin)[\\/]|^\.[\\/](?=make)", "", text)
        if re.match(r"(so8t|make) ", text):
            yield shlex.split(text.replace("…", "").replace("\\", "/"))


@pytest.mark.parametrize("name", [*READMES, "docs/ARCHITECTURE.md", "CHANGELOG.md", "docs/configuration.md"])
def test_what_a_page_says_to_type_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))
    commands = dict(cli_reference.commands())
    for words in typed(name):
        if words[0] == "make":
            assert words[1] in targets, words
            continue
        command, at = commands["so8t"], 1
        while at < len(words) and isinstance(command, click.Group) and not words[at].startswith("-"):
            found = command.commands.get(words[at]) or command.get_command(click.Context(command), words[at])
            assert found is not None, f"{name}: {' '.join(words)}"
            command, at = found, at + 1
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in words[at:]:
            assert not word.startswith("--") or word.split("=")[0] in options, f"{name}: {' '.join(words)}"


@pytest.mark.parametrize("name", READMES)
def test_the_files_a_readme_names_exist(name: str) -> None:
    text = read(name)
    for path in re.findall(r"\bconfigs/[\w./-]+\.yaml", text) + re.findall(r"extends: (\S+\.yaml)", text):
        if path != "configs/my.yaml":
            assert (ROOT / path).exists() or (ROOT / "configs" / path).exists(), path
    for needed in ("make run", "make test", "so8t resume --config configs/quickstart.yaml", "py -m venv .venv",
                   "docs/states.svg", "HF_TOKEN", "configs/quickstart.yaml"):
        assert needed in text, needed


def test_the_two_readmes_have_the_same_shape() -> None:
    headings = [[len(h) for h in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", read(name), flags=re.S), re.M)]
                for name in READMES]
    assert headings[0] == headings[1]

    def commands(name: str) -> list[str]:
        return [re.sub(r"#.*", "", line).strip().lstrip("$> ") for block in blocks(name) for line in block.splitlines()]

    assert commands(READMES[0]) == commands(READMES[1])
    rows = [read(name).count("\n| `") for name in READMES]
    assert rows[0] == rows[1]


# --- every page -------------------------------------------------------------------------------------------------------

def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown page offers, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.~*/])/(?:work|tmp|home|root|opt|mnt|srv|Users)/\w|\b[C-Z]:\\Users\\",
    "a package index": r"pypi|pythonhosted|npmjs|index-url|find-links",
    "unfinished": r"\bTODO\b|\bFIXME\b|\bTBD\b|lorem ipsum",
    "marketing": r"(?i)\b(?:blazing|revolutionary|state-of-the-art|seamless|effortless|cutting-edge|powerful)",
    "a token": r"\bhf_[A-Za-z0-9]{10,}",
}


@pytest.mark.parametrize("path", [*PAGES, *(ROOT / n for n in ("Makefile", "make.cmd", ".ci/run", "constraints.txt"))],
                         ids=page_id)
def test_a_page_says_nothing_it_should_not(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for what, pattern in FORBIDDEN.items():
        assert not (found := re.search(pattern, text)), f"{what}: {found and found[0]}"


def test_decisions_have_their_shape() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [p.name[:4] for p in pages] == [f"{i:04d}" for i in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.match(rf"# {int(page.name[:4])}\. \w", text), page.name
        assert re.findall(r"^## (.+)$", text, re.M) == [
            "Context", "Decision", "Rejected alternative", "Consequence", "Revisit when"], page.name
        assert all(part.strip() for part in re.split(r"^## .+$", text, flags=re.M)[1:]), page.name
        assert len(text.splitlines()) < 60, f"{page.name} is long"


# --- what is installed ------------------------------------------------------------------------------------------------

def pins() -> dict[str, str]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    known = pins()
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in known, f"{name} is not in constraints.txt"
        assert known[name] in requirement.specifier, f"{name}=={known[name]} does not satisfy {text}"


def test_pins_are_plain_versions() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", name), name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"
    for readme in READMES:
        assert f"torch=={pins()['torch']}" in read(readme)


def test_the_changelog_knows_this_version() -> None:
    version = re.escape(PROJECT["version"])
    assert re.search(rf"^## \[{version}\] - (Unreleased|\d{{4}}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)


def test_the_twin_of_the_makefile_offers_what_the_readmes_need() -> None:
    raw = (ROOT / "make.cmd").read_bytes()
    assert raw.isascii() and raw.count(b"\n") == raw.count(b"\r\n")  # what cmd.exe on a cp932 console reads
    labels = set(re.findall(rb"^:(\w+)", raw, re.M))
    assert {b"install", b"run", b"test", b"lint"} <= labels
    assert set(re.findall(rb"(?:goto|call :)\s*(\w+)", raw)) <= labels
