"""The documents of the repository, cut into what a test can run or look up: fenced blocks, commands, inline code."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/**/*.md"))]
_FENCED = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its document and line, its language, the rest of its first line, and what it holds."""

    document: str
    line: int
    language: str
    info: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All fenced blocks in one of `languages`."""
    return [
        Block(str(path.relative_to(ROOT)), 1 + text[: fence.start()].count("\n"), fence[1], fence[2].strip(), fence[3])
        for path in GUIDES
        for text in [path.read_text()]
        for fence in _FENCED.finditer(text)
        if fence[1] in languages
    ]


def command_lines(script: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of `program` in a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _OPERATORS:
                words.append(word)
                continue
            while words and re.match(r"[A-Za-z_]+=", words[0]):
                words = words[1:]
            if words and (words[0] == program or words[0].endswith(f"/{program}")):
                yield words[1:]
            words = []


def inline_code(document: Path) -> list[str]:
    """The texts between backticks outside the fenced blocks."""
    return re.findall(r"`([^`]+)`", _FENCED.sub("", document.read_text()))
