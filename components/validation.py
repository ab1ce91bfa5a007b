"""Errors of validation as lines that name field, value and bound."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from pydantic import ValidationError

from components.errors import shorten

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def describe(error: ValidationError, *, section: str | None) -> str:
    """Return the problems of a validation error, one a line; `section` None if the error is that of all sections together."""
    return "\n".join(problem_lines(error, section=section))


def problem_lines(error: ValidationError, *, section: str | None) -> list[str]:
    """Return one line per problem of a validation error, naming the field, the value and the bound."""
    problems = [problem for problem in error.errors() if not _is_consequence(problem)]
    return [line for problem in problems for line in _lines(problem, () if section is None else (section,))]


def location(path: Iterable[str]) -> str:
    """Return the path of a field in an error, on one line whatever the keys are."""
    return ".".join(part if part.isprintable() else repr(part) for part in path)


def _is_consequence(problem: "ErrorDetails") -> bool:
    """Return whether a list is long enough and was counted without its invalid items, which have lines of their own."""
    items = problem["input"]
    return problem["type"] == "too_short" and isinstance(items, Collection) and len(items) >= problem["ctx"]["min_length"]


def _lines(problem: "ErrorDetails", parents: tuple[str, ...]) -> list[str]:
    where = location((*parents, *map(str, problem["loc"])))
    if problem["type"] == "extra_forbidden":
        return [f"unknown key {where}"]
    if problem["type"] == "missing":
        return [f"{where} is missing"]
    if problem["type"] == "value_error":  # several fields together; FrozenConfig puts each problem on a line
        start = f"{where}: " if where else ""
        return [f"{start}{text}" for text in problem["msg"].removeprefix("Value error, ").splitlines()]
    if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
        value = problem["input"]
        return [f"{where}: a text is expected (given: {value!r}); quote it twice on the command line: {where}='\"{value}\"'"]
    return [f"{where}: {problem['msg']} (given: {shorten(repr(problem['input']))})"]
