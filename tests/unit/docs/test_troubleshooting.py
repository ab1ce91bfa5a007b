"""Every error that docs/troubleshooting.md quotes is one that the code prints."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs/troubleshooting.md"
PLACEHOLDER = re.compile(r"\.\.\.|\b[NMP]\b|\b180\b|\b0/5 nodes are available: ")
OTHER_SOFTWARE = re.compile(r"from (MLflow|PostgreSQL|podman)\b")
FORMATTED = "\0"


@cache
def texts() -> tuple[str, ...]:
    """All string literals of the code, a null character in place of each formatted value, and the lines of the shell scripts."""
    python = [path for package in ("components", "pipeline", "model") for path in sorted((ROOT / package).rglob("*.py"))]
    literals = [literal for path in python for literal in literals_of(path.read_text())]
    scripts = [
        re.sub(r"\$\w+|\$\{[^}]*\}", FORMATTED, line) for path in ROOT.glob("docker/**/*.sh") for line in path.read_text().splitlines()
    ]
    return (*literals, *scripts)


def literals_of(source: str) -> list[str]:
    """The texts in `source` that a program can print: string literals, but not docstrings."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    literals = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            literals.append("".join(str(part.value) if isinstance(part, ast.Constant) else FORMATTED for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | parts):
            literals.append(node.value)
    return [" ".join(text.split(" ")) for text in literals]


def quoted_errors(guide: str) -> list[str]:
    """The quoted texts in the first column of each table, without those that the guide ascribes to other software."""
    cells = [line.split(" | ")[0] for line in guide.splitlines() if line.startswith("| ")]
    return [text for cell in cells if not OTHER_SOFTWARE.search(cell) for text in re.findall(r"`([^`]+)`", cell)]


def pieces_of(quoted: str) -> list[str]:
    return [piece.strip() for piece in PLACEHOLDER.split(quoted) if piece.strip(" '\",:()")]


def _word(word: str, *, after_gap: bool) -> str:
    """A group that matches `word`, or a formatted value in its place unless a gap comes before it, which would swallow the value."""
    return f"({re.escape(word)})" if after_gap else rf"({re.escape(word)}|[^ ]*{FORMATTED}[^ ]*)"


def is_printed(quoted: str) -> bool:
    """Whether one literal holds all pieces of a quoted error in their order.

    A formatted value may stand for words that the guide quotes as an example, for at most half of what is quoted.
    """
    pieces = [piece.split() for piece in pieces_of(quoted)]
    pattern = re.compile(
        ".*?".join(" ".join(_word(word, after_gap=at > 0 and n == 0) for n, word in enumerate(words)) for at, words in enumerate(pieces))
    )
    long_enough = sum(len(word) for words in pieces for word in words) / 2
    matches = (match.groups() for text in texts() if (match := pattern.search(text)))
    return any(sum(len(word.replace(FORMATTED, "")) for word in words) >= long_enough for words in matches)


def test_the_guide_quotes_errors() -> None:
    assert len(quoted_errors(GUIDE.read_text())) > 50


def test_an_error_that_is_not_in_the_code_is_noticed() -> None:
    assert is_printed("data.source ... contains no images")
    assert not is_printed("data.source ... contains no pixels")
    assert not is_printed("some words that are nowhere")


@pytest.mark.parametrize("quoted", quoted_errors(GUIDE.read_text()))
def test_a_quoted_error_is_in_the_code(quoted: str) -> None:
    assert is_printed(quoted), f"{quoted!r} is in docs/troubleshooting.md, and no text of the code has {pieces_of(quoted)} in this order"
