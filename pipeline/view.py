"""Show the progress of a run on stderr: a bar per step on a terminal, plain lines elsewhere.

Promises: only reads events; the outcome does not depend on it. Texts are escaped, so that data cannot send control sequences to the
terminal.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from components.runtime.events import Event, EventReader, progress_text, was_stopped

_PLAIN_EVERY_S = 5.0
_FOLLOW_EVERY_S = 0.2
_LABELS = {"faces": "make faces"}
"""Labels of bars that are not named like their step."""


def printable(text: str) -> str:
    """Return `text` without control characters, which could move the cursor or recolour the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


class RunView:
    """Displays events until the block ends."""

    def __init__(self, *, terminal: bool | None = None, complete_commands: Callable[[str], str] = lambda text: text) -> None:
        """`complete_commands` returns a note with the commands in it as the user can run them."""
        self._complete_commands = complete_commands
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._console = Console(file=sys.stderr, highlight=False)
        self._progress = Progress(
            TextColumn("{task.fields[mark]} {task.description:<10}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._printed_s: dict[str, float] = {}
        self._started_s: dict[str, float] = {}
        self._printed: set[str] = set()

    def __enter__(self) -> "RunView":
        if self._terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._terminal:
            self._progress.stop()

    def print_line(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(escape(printable(text)), soft_wrap=True)

    def print_once(self, text: str) -> None:
        """Print a line above the bars, unless it was printed so before: the runs of a sweep share their servers."""
        if text not in self._printed:
            self._printed.add(text)
            self.print_line(text)

    @contextmanager
    def follow(self, path: Path) -> Iterator[None]:
        """Show the events that are appended to the file `path` during the block, a moment later."""
        reader, ended = EventReader(path), threading.Event()

        def follow() -> None:
            while True:
                last = ended.wait(_FOLLOW_EVERY_S)
                for event in reader.read():
                    self(event)
                if last:
                    return

        thread = threading.Thread(target=follow, name="events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def print_waiting(self, name: str) -> None:
        """Print that the embedded server `name` is starting."""
        self.print_line(f"waiting for the embedded {name} server")

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.kind == "note":
            self.print_line(f"  {event.step}: {self._complete_commands(event.facts['text'])}")
        if self._terminal:
            self._draw(event)
        else:
            self._print(event)

    def _draw(self, event: Event) -> None:
        if event.step not in self._tasks:
            label = _LABELS.get(event.step, event.step)
            self._tasks[event.step] = self._progress.add_task(label, total=None, text="", mark="[cyan]>[/cyan]")
        task = self._tasks[event.step]
        if event.kind == "progress":
            text = escape(printable(progress_text(event.facts)))
            self._progress.update(task, completed=event.facts["done"], total=event.facts["total"], text=text)
        elif event.kind in ("finished", "failed"):
            mark = "[green]✓[/green]" if event.kind == "finished" else "[yellow]-[/yellow]" if was_stopped(event) else "[red]✗[/red]"
            total = next(drawn.total for drawn in self._progress.tasks if drawn.id == task) or 1
            self._progress.update(task, mark=mark, total=total, completed=total if event.kind == "finished" else 0)
            self._progress.stop_task(task)

    def _print(self, event: Event) -> None:
        if event.kind == "started":
            self._started_s[event.step] = event.at_s
            self.print_line(f"{event.step}: started")
        elif event.kind == "finished":
            self.print_line(f"{event.step}: finished in {event.at_s - self._started_s.get(event.step, event.at_s):.1f} s")
        elif event.kind == "failed":
            self.print_line(f"{event.step}: {'interrupted' if was_stopped(event) else 'failed'}")
        elif event.kind == "progress":
            now = time.monotonic()
            total, printed_s = event.facts["total"], self._printed_s.get(event.step, -_PLAIN_EVERY_S)
            if (total is not None and event.facts["done"] >= total) or now - printed_s >= _PLAIN_EVERY_S:
                self._printed_s[event.step] = now
                self.print_line(f"{event.step}: {progress_text(event.facts)}")
