"""Run the graph on this machine with kfp's local runner, in a process group of its own, and hear of it through events.

Promises: the outcome is the first failing step's own error; stopping the run gives a step time to save and leaves no process behind; kfp's
output goes to a log file, what people should see comes as events. Which servers are used is decided by the environment that is handed in.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import CelebditError, TemporaryFailure, error_for_exit_code
from components.events import Event, EventReader
from components.process import spawn, stop
from pipeline.config import RunConfig

_POLL_S = 0.1
_GRACE_S = 40.0


@dataclass
class LocalOutcome:
    """What became of a run: each step's result and how long it took."""

    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: CelebditError | None = None

    def hear(self, event: Event) -> None:
        """Take in one event."""
        if event.kind == "started":
            self.seconds[event.step] = -event.at_s
        elif event.kind == "result":
            self.results[event.step] = event.facts["manifest"]
        if event.kind in ("finished", "failed") and self.seconds.get(event.step, 0) < 0:
            self.seconds[event.step] = round(self.seconds[event.step] + event.at_s, 2)
        if event.kind == "failed" and self.failure is None:
            facts = event.facts
            self.failure = error_for_exit_code(int(facts["exit_code"]), f"{event.step}: {facts['message']}", hint=facts.get("hint"))


def run_locally(config: RunConfig, folder: Path, environment: Mapping[str, str], *, on_event: Callable[[Event], None]) -> LocalOutcome:
    """Run the graph with `config` and wait for it; everything of this run that is local goes below `folder`.

    Raises:
        KeyboardInterrupt: passed on after the run was stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events_path, spec_path = folder / "events.jsonl", folder / "arguments.json"
    spec_path.write_text(json.dumps({"arguments": config.sections(), "root": str(folder / "kfp")}))
    reader, outcome = EventReader(events_path), LocalOutcome()

    def listen() -> None:
        for event in reader.read():
            outcome.hear(event)
            on_event(event)

    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "pipeline.local", str(spec_path)]
        process = spawn(command, environment={**environment, "CELEBDIT_EVENTS": str(events_path)}, stdout=log, new_group=True)
        try:
            while process.poll() is None:
                listen()
                time.sleep(_POLL_S)
        except BaseException:
            stop(process, grace_s=_GRACE_S)
            listen()
            raise
    listen()
    if process.returncode != 0 and outcome.failure is None:
        outcome.failure = TemporaryFailure(
            f"the local pipeline runner ended with status {process.returncode}", hint=f"its log: {folder / 'log.txt'}"
        )
    return outcome


def main(spec_path: Path) -> None:
    """Be the process that kfp's local runner lives in."""
    # Importing kfp takes seconds, and only this process needs it.
    from kfp import local  # noqa: PLC0415

    from pipeline.graph import build_graph  # noqa: PLC0415

    spec = json.loads(spec_path.read_text())
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=spec["root"], raise_on_error=True)
    try:
        build_graph(spec["arguments"])()
    except RuntimeError as error:  # which step failed and why is in the events; kfp only knows the name
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
