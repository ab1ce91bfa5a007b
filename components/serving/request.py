"""What a request to a served version may ask for. Pure: reads the JSON of a request and nothing else.

Promises: a body that passes has rows and parameters that the model knows, in numbers that the server can bear; any other is refused with
one line that names the field, the value and the bound, and never repeats the request.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from components.errors import shorten

MAX_BODY_BYTES = 2**20
MAX_ROWS = 64
MAX_STEPS = 1000
_FORMATS = ("dataframe_records", "dataframe_split", "instances", "inputs")
_MOST_CHARACTERS = 300


class Refused(Exception):
    """A request that is not answered, with the HTTP status and one line that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = one_line(reason)


def one_line(text: str) -> str:
    """Return `text` on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 4]} ..."


def check_body(body: bytes, *, parameters: Collection[str], columns: Sequence[str]) -> None:
    """Check a request for a model that takes these `columns` and `parameters`.

    Raises:
        Refused: with 400 and the reason.
    """
    try:
        request = json.loads(body)
    except RecursionError:
        raise Refused(400, "the body is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON that can be read: {error}") from None
    if not isinstance(request, dict):
        raise Refused(400, 'the body must be a JSON object, like {"dataframe_records": [{"seed": 0}]}')
    formats = [name for name in _FORMATS if name in request]
    if unknown := sorted(request.keys() - {*_FORMATS, "params"}):
        raise Refused(400, f"{shorten(repr(unknown[0]))} is unknown: a request has params and one of {', '.join(_FORMATS)}")
    if len(formats) != 1:
        raise Refused(400, f"the body has {len(formats)} of {', '.join(_FORMATS)}: exactly one must be given")
    _check_rows(formats[0], request[formats[0]], columns)
    _check_parameters(request.get("params"), parameters)


def _check_rows(field: str, value: Any, columns: Sequence[str]) -> None:
    rows, named = _rows_and_columns(field, value)
    if not 1 <= rows <= MAX_ROWS:
        raise Refused(400, f"{rows} seeds in one request, allowed are 1 to {MAX_ROWS}")
    if unknown := sorted(map(str, named - set(columns))):
        raise Refused(400, f"{field} has an unknown column {shorten(repr(unknown[0]))}: this model takes {', '.join(columns)}")


def _rows_and_columns(field: str, value: Any) -> tuple[int, set[Any]]:
    """Return how many rows there are and the names of the columns, as far as the format names them."""
    if field == "dataframe_split" and isinstance(value, dict):
        data, named = value.get("data"), value.get("columns", [])
        if isinstance(data, list) and isinstance(named, list) and value.keys() <= {"data", "columns", "index"}:
            return _length(field, data), set(map(str, named))
    elif field == "inputs" and isinstance(value, dict):
        lengths = {len(column) if isinstance(column, list) else 1 for column in value.values()}
        return max(lengths, default=0), set(value)
    elif isinstance(value, list) and field != "dataframe_split":
        return _length(field, value), {name for row in value if isinstance(row, dict) for name in row}
    raise Refused(400, f"{field} is not a table of rows")


def _length(field: str, rows: list[Any]) -> int:
    for row in rows[: MAX_ROWS + 1]:
        if isinstance(row, list) and len(row) != 1:
            raise Refused(400, f"{field} has a row of {len(row)} cells, a row is one seed")
    return len(rows)


def _check_parameters(params: Any, known: Collection[str]) -> None:
    if params is None:
        return
    if not isinstance(params, Mapping):
        raise Refused(400, 'params must be a JSON object, like {"num_steps": 20}')
    if unknown := sorted(params.keys() - set(known)):
        raise Refused(400, f"params.{shorten(unknown[0])} is unknown: this model takes {', '.join(sorted(known)) or 'none'}")
    steps = params.get("num_steps", 1)
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise Refused(400, f"params.num_steps {shorten(str(steps), max_characters=40)} is not a whole number between 1 and {MAX_STEPS}")
    if not 1 <= steps <= MAX_STEPS:
        raise Refused(400, f"params.num_steps {shorten(str(steps), max_characters=40)} must lie between 1 and {MAX_STEPS}")
