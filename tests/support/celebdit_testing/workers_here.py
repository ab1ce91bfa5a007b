"""The workers of an evaluation in this process: starting torch each time would cost seconds."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.evaluate.worker import body
from components.runtime.context import StepContext
from components.runtime.events import Events
from components.runtime.rank import Rank
from components.settings import Settings
from model.distributed import World


@contextmanager
def workers_here(context: StepContext | None = None, *, then: Callable[[], object] = lambda: None) -> Iterator[list[Path]]:
    """Run the one worker of each start in this process, in `context` or one of the environment; `then` happens after it.

    Yields the specification of each start, which is that of a batch if several evaluations share it.
    """
    starts: list[Path] = []

    def here(module: str, spec_path: Path, **_: object) -> None:
        assert module == "components.evaluate.worker"
        starts.append(spec_path)
        place = context or StepContext(settings=Settings.from_environment(), events=Events("evaluate", None))
        body(spec_path, Rank(context=place, world=World(), stop_requested=threading.Event()))
        then()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.evaluate.workers.launch", here)
        yield starts
