"""Run the graph on this machine with kfp's local runner, as subprocesses or in containers, and hear of it through events.

Promises: the outcome is the first failing step's own error; stopping the run gives a step time to save and leaves no process behind; kfp's
output goes to a log file, what people should see comes as events. Which servers are used is decided by the environment that is handed in.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.environment import EVENTS, RUN_ID, WORK_DIR
from components.errors import CelebditError, TemporaryFailure, error_for_exit_code
from components.runtime.events import Event, EventReader
from components.system.process import spawn, stop
from pipeline.config import RunConfig
from pipeline.containers import (
    ContainerPlan,
    container_arguments,
    engine_address,
    plan_containers,
    require_images,
    rootless_podman,
    run_container,
)

_POLL_S = 0.1
_GRACE_S = 40.0


@dataclass
class LocalOutcome:
    """What became of a run: each step's result and how long it took."""

    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: CelebditError | None = None
    _started_s: dict[str, float] = field(default_factory=dict)

    def hear(self, event: Event) -> None:
        """Take in one event."""
        if event.kind == "started":
            self._started_s[event.step] = event.at_s
        elif event.kind == "result":
            self.results[event.step] = event.facts["manifest"]
        if event.kind in ("finished", "failed") and event.step in self._started_s:
            self.seconds[event.step] = round(event.at_s - self._started_s.pop(event.step), 2)
        if event.kind == "failed" and self.failure is None:
            facts = event.facts
            self.failure = error_for_exit_code(int(facts["exit_code"]), f"{event.step}: {facts['message']}", hint=facts.get("hint"))


def run_locally(
    config: RunConfig, folder: Path, environment: Mapping[str, str], *, on_event: Callable[[Event], None], in_containers: bool = False
) -> LocalOutcome:
    """Run the graph with `config` and wait for it; everything of this run that is local goes below `folder`.

    Raises:
        BadInput: if containers are asked for and cannot be run here.
        KeyboardInterrupt: passed on after the run was stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec: dict[str, Any] = {"arguments": config.sections(), "root": str(folder / "kfp")}
    with ExitStack() as stack:
        if in_containers:
            # Another user writes there, so it is not the folder that subprocesses use.
            environment = {
                **environment,
                WORK_DIR: f"{environment[WORK_DIR]}-containers",
                "DOCKER_HOST": stack.enter_context(engine_address()),
            }
            rootless = rootless_podman(environment["DOCKER_HOST"])
            plan = plan_containers(config, folder, environment, run_id=environment[RUN_ID], rootless_podman=rootless)
            require_images(environment["DOCKER_HOST"], plan)
            spec["containers"] = plan.to_json()
        return _run(spec, folder, environment, on_event)


def _run(spec: Mapping[str, Any], folder: Path, environment: Mapping[str, str], on_event: Callable[[Event], None]) -> LocalOutcome:
    events_path, spec_path = folder / "events.jsonl", folder / "arguments.json"
    spec_path.write_text(json.dumps(spec))
    reader, outcome = EventReader(events_path), LocalOutcome()

    def listen() -> None:
        for event in reader.read():
            outcome.hear(event)
            on_event(event)

    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "pipeline.local", str(spec_path)]
        process = spawn(command, environment={**environment, EVENTS: str(events_path)}, stdout=log, new_group=True)
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
    from kfp.local import docker_task_handler  # noqa: PLC0415

    from pipeline.graph import HEAVY_STEPS, build_graph  # noqa: PLC0415

    spec = json.loads(spec_path.read_text())
    dress: Callable[[str, Any], None] = lambda step, task: None  # noqa: E731
    runner: Any = local.SubprocessRunner(use_venv=False)
    if "containers" in spec:
        plan = ContainerPlan.from_json(spec["containers"])
        docker_task_handler.run_docker_container = run_container
        runner = local.DockerRunner(**container_arguments(plan, os.environ, user_id=os.getuid()))

        def dress(step: str, task: Any) -> None:
            task.set_container_image(plan.gpu if step in HEAVY_STEPS else plan.cpu)

    local.init(runner=runner, pipeline_root=spec["root"], raise_on_error=True)
    try:
        build_graph(spec["arguments"], dress)()
    except RuntimeError as error:  # which step failed and why is in the events; kfp only knows the name
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
