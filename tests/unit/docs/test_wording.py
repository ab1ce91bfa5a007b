"""Documents, help texts and errors avoid the words that CONTRIBUTING lists."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from components import errors
from pipeline.cli import cli
from pipeline.steps import step_names

ROOT = Path(__file__).parents[3]
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")), *sorted(ROOT.glob("docs/**/*.md"))]
AREAS = (
    *(f"components/{step}" for step in step_names()),
    *(f"components/{package}" for package in ("weights", "serving", "registry", "runtime", "stores", "tracking", "storage", "kube")),
    *(f"components/{package}" for package in ("reports", "system", "errors.py", "manifests.py", "resources.py", "settings.py")),
    "model",
    "pipeline",
)
"""Folders and files whose errors, hints and notes are checked. A part of the code that is reworded is added here."""
REWORDED_COMMANDS = ("celebdit",)
"""Commands whose help is checked, with all commands below them; "celebdit" is all of them."""
ERRORS = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}


def listed_words(guide: str) -> list[str]:
    """The words in the fenced block below the heading "Wording"."""
    _, _, rules = guide.partition("\n## Wording\n")
    block = re.search(r"^```text\n(.*?)^```", rules, re.MULTILINE | re.DOTALL)
    assert block is not None, "CONTRIBUTING has a block of words below the heading Wording"
    return [word.strip() for word in re.split(r"[,\n]", block[1]) if word.strip()]


WORDS = listed_words((ROOT / "CONTRIBUTING.md").read_text())
LISTED = re.compile(r"\b(" + "|".join(r"\s+".join(map(re.escape, word.split())) for word in WORDS) + r")\b", re.IGNORECASE)


def without_word_list(document: Path) -> str:
    """The text of a document; of CONTRIBUTING with empty lines in place of the block that lists the words."""
    text = document.read_text()
    if document.name != "CONTRIBUTING.md":
        return text
    return re.sub(r"^```text\n.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def hits(text: str, where: str) -> list[str]:
    return [f"{where}:{1 + text[: hit.start()].count(chr(10))}: {hit[0]!r}" for hit in LISTED.finditer(text)]


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string literal in a `raise`, an error that is made elsewhere, a `hint=`, or the arguments of a `note`."""
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            parts = [node.exc]
        elif isinstance(node, ast.Call):
            parts = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
            if called == "note" or called in ERRORS:
                parts += [*node.args, *(keyword.value for keyword in node.keywords)]
        for literal in (literal for part in parts for literal in ast.walk(part)):
            if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                yield literal.lineno, literal.value


def code_hits(area: str) -> list[str]:
    path = ROOT / area
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files, f"there is no code in {area}"
    hits = {
        f"{file.relative_to(ROOT)}:{line}: {hit[0]!r} in {text!r}"
        for file in files
        for line, text in messages(file.read_text())
        for hit in LISTED.finditer(text)
    }
    return sorted(hits)


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for part in command.list_commands(context):
            inner = command.get_command(context, part)
            assert inner is not None
            yield from commands(inner, f"{name} {part}")


def help_text(command: click.Command, name: str) -> str:
    return command.get_help(click.Context(command, info_name=name, max_content_width=1000))


def test_the_list_holds_words() -> None:
    assert {"door", "nobody", "hand on"} <= set(WORDS)
    assert LISTED.findall("The Door is away; nobody\nhands  on an outdoor thing") == ["Door", "is away", "nobody", "hands  on"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_avoid_the_listed_words(document: Path) -> None:
    assert hits(without_word_list(document), str(document.relative_to(ROOT))) == []


def test_texts_of_make_avoid_the_listed_words() -> None:
    assert hits((ROOT / "Makefile").read_text(), "Makefile") == []


def test_messages_are_found_wherever_a_reader_sees_them() -> None:
    def show_message() -> None:
        raise ValueError(f"first {show_message} second" if show_message else "third", hint="fourth")  # type: ignore[call-arg]

    source = (
        textwrap.dedent(inspect.getsource(show_message)) + "\nevents.note(f'fifth {x}')\nBadInput('sixth', hint='seventh' + 'eighth')\n"
    )
    assert {text.strip() for _, text in messages(source)} == {"first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"}


@pytest.mark.parametrize("area", AREAS)
def test_errors_hints_and_notes_avoid_the_listed_words(area: str) -> None:
    assert code_hits(area) == []


@pytest.mark.parametrize("name", REWORDED_COMMANDS)
def test_help_avoids_the_listed_words(name: str) -> None:
    commands_by_name = dict(commands(cli, "celebdit"))
    below = {path: command for path, command in commands_by_name.items() if f"{path} ".startswith(f"{name} ")}
    assert below, f"there is no command {name!r}; there are {', '.join(commands_by_name)}"
    assert [hit for path, command in below.items() for hit in hits(help_text(command, path), f"{path} --help")] == []


def test_no_text_leaves_it_open_whether_a_noun_is_singular() -> None:
    """`plural` in `components/reports/plural.py` writes one or the other."""
    files = [path for package in ("model", "components", "pipeline") for path in sorted((ROOT / package).rglob("*.py"))]
    texts = ((file, node) for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
    unclear = re.compile(r"(?<!http)(?<=[a-z])\((s|es|ies)\)")
    hits = [f"{file.relative_to(ROOT)}:{node.lineno}" for file, node in texts if isinstance(node.value, str) and unclear.search(node.value)]
    assert not hits
