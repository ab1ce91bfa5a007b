"""The one tree of errors that are meant for people, each with the exit code of its kind.

Promises: a `CelebditError` carries one line that names what is wrong and, in `hint`, what to do next; the command line prints it without a
traceback. Anything else that reaches the command line is an internal error and exits with 70.
"""

from dataclasses import dataclass

EXIT_OK = 0
EXIT_BUG = 70
BUG_HINT = "this is a bug: please report it with the traceback above"


class CelebditError(Exception):
    """Base of all errors that are meant for the person who reads them."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class GateFailed(CelebditError):
    """The model was measured and did not pass. Nothing was promoted."""

    exit_code = 1


class BadInput(CelebditError):
    """A configuration, a command line or an environment that cannot work. Finished work is kept."""

    exit_code = 2


class DataRefused(CelebditError):
    """Data or a stored object is not what it must be. Nothing built on it was kept."""

    exit_code = 3


class TemporaryFailure(CelebditError):
    """Something outside failed for now. Run the same command again: finished work is kept."""

    exit_code = 75


class RankLost(TemporaryFailure):
    """A rank of a distributed step stopped hearing from another. The other one knows why, if anyone does."""


class StorageUnavailable(TemporaryFailure):
    """Object storage failed for longer than the retry deadline."""


class TrackingUnavailable(TemporaryFailure):
    """MLflow failed for longer than the retry deadline."""


class TrackingRefused(BadInput):
    """MLflow does not do what it is asked: an entity was deleted, a name or a value is not allowed, an upload is too large."""


class TrackingCallMissing(TrackingRefused):
    """MLflow, or what answers in its place, does not offer a call: it is too old, or a proxy lets only some calls through."""


class Preempted(TemporaryFailure):
    """The step was asked to stop; its state is saved and the next attempt continues from it."""


class Interrupted(CelebditError):
    """The person at the keyboard stopped the command."""

    exit_code = 130


@dataclass(frozen=True)
class Failure:
    """What people and other processes are shown of an exception."""

    kind: str
    """The name of its class."""
    message: str
    hint: str | None
    exit_code: int

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Describe `error`; one that is not ours is shown with its kind and counts as an internal error."""
        kind = type(error).__name__
        if isinstance(error, CelebditError):
            return cls(kind, error.message, error.hint, error.exit_code)
        return cls(kind, f"{kind}: {error}", None, EXIT_BUG)


def first_line(error: BaseException, *, max_characters: int = 200) -> str:
    """Return the first line of the text of `error`, or its kind if it has none."""
    return shorten((str(error).splitlines() or [type(error).__name__])[0], max_characters=max_characters)


def whole_text(error: BaseException, *, max_characters: int = 1000) -> str:
    """Return the text of `error` as one line, or its kind if it has none: some libraries say what is wrong after the first line."""
    return shorten(" ".join(str(error).split()) or type(error).__name__, max_characters=max_characters)


def shorten(text: str, *, max_characters: int = 100) -> str:
    """Return `text` as an error may quote it: its beginning alone if it is long."""
    return text if len(text) <= max_characters else f"{text[:max_characters]}... ({len(text)} characters)"


def error_for_exit_code(exit_code: int, message: str, *, hint: str | None = None) -> CelebditError:
    """Rebuild an error of the right kind from what another process reported."""
    kinds = {kind.exit_code: kind for kind in (GateFailed, BadInput, DataRefused, TemporaryFailure, Interrupted)}
    return kinds.get(exit_code, CelebditError)(message, hint=hint)
