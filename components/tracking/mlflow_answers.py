"""The answer of a server in what MLflow's client raises: its status, the request that it is for, and whether MLflow gave it.

Promises: pure functions of the error. MLflow's client (3.17) keeps little of an answer in what it raises: the response itself is found on
the error, or in the frames that it passed through; only where there is none, the text is read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException

from components.errors import shorten

_REQUEST_IN_TEXT = re.compile(r"API request to endpoint (\S+) failed with error code (\d{3}) != 200")
_DOWNLOAD_IN_TEXT = re.compile(r"(\d{3}) (?:Client|Server) Error: .*? for url: (\S+?)\.?(?:\s|$)")
_CODE_IN_TEXT = re.compile(r'"error_code": ?"(\w+)"')
_PAGE = re.compile(r"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)
_LIBRARIES = ("mlflow", "requests")
_NO_SUCH_CALL = (404, 405, 501)
_NO_SUCH_CALL_CODES = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


@dataclass(frozen=True)
class MlflowAnswer:
    """The server's answer to a request."""

    status: int
    text: str
    """What MLflow's client says of it."""
    path: str = ""
    """The path of the request, or nothing if it is not known."""
    method: str = ""
    error_code: str = ""
    """That of MLflow's API; empty if the server did not answer in its form."""
    is_page: bool = False

    @property
    def summary(self) -> str:
        """The first line of the text."""
        return shorten((self.text.splitlines() or [f"HTTP {self.status}"])[0], max_characters=200)

    @property
    def lacks_call(self) -> bool:
        """Whether the server, or a proxy before it, offers no such call, rather than MLflow having no such entity."""
        return self.error_code in _NO_SUCH_CALL_CODES or (not self.error_code and self.status in _NO_SUCH_CALL)


def answer_in(error: Exception) -> MlflowAnswer | None:
    """Return the answer that `error` was raised for, or None if it is not one about an answer."""
    if (response := response_in(error)) is not None:
        return _read(response, str(error))
    text = str(error)
    if written := _REQUEST_IN_TEXT.search(text):
        return MlflowAnswer(int(written[2]), text, written[1])
    if download := _DOWNLOAD_IN_TEXT.search(text):  # of several files at once, of which some failed
        code, path = _CODE_IN_TEXT.search(text), urlsplit(download[2]).path
        is_page = _PAGE.match(text.partition("Response text:")[2]) is not None
        return MlflowAnswer(int(download[1]), download[0].strip(), path, "GET", code[1] if code else "", is_page=is_page)
    if isinstance(error, MlflowException):
        return MlflowAnswer(int(error.get_http_status_code()), text, error_code=str(error.error_code))
    return None


def response_in(error: BaseException) -> Any | None:
    """Return the response of `requests` that `error` was raised for, if it can be found."""
    cause: BaseException | None = error
    while cause is not None:
        for value in (getattr(cause, "response", None), *_locals_of_libraries(cause)):
            if hasattr(value, "status_code") and hasattr(value, "history"):
                return value
        cause = cause.__cause__
    return None


def _locals_of_libraries(error: BaseException) -> Iterator[object]:
    """Yield what the innermost frames of MLflow's client hold where they keep a response."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        if str(frame.f_globals.get("__name__", "")).split(".")[0] in _LIBRARIES:
            yield from (frame.f_locals.get(name) for name in ("response", "resp", "self"))


def _read(response: Any, text: str) -> MlflowAnswer:
    request = (response.history or [response])[0].request  # the one before any redirection
    return MlflowAnswer(
        response.status_code,
        text,
        urlsplit(request.url or "").path.replace("//", "/"),
        request.method or "",
        _error_code(response),
        is_page=_PAGE.match(response.text) is not None,
    )


def _error_code(response: Any) -> str:
    try:
        body = json.loads(response.text)
    except (ValueError, RecursionError):
        return ""
    return str(body.get("error_code") or "") if isinstance(body, dict) else ""
