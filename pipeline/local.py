"""Run the graph on this machine with kfp's local runner, as subprocesses (`step_processes.py`) or in containers.

Promises: the outcome is the error of the first step that failed; stopping the run gives a step time to save and leaves no process and no
temporary folder behind, and SIGKILL, of this process or of one below it, leaves no process (`components/system/guardian.py`); kfp's output
goes to a log file, progress is reported as events. The environment that is passed in decides which servers are used; steps get what they
need of it, run in the folder of the run and import nothing from the folder of the command.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.environment import EVENTS, PRESET, RUN_ID, WORK_DIR
from components.errors import CelebditError, TemporaryFailure, error_for_exit_code
from components.ingest.sources.open_source import kind_of
from components.process_settings import lifeline_path
from components.runtime.agent_report import cause_of
from components.runtime.events import Event, EventReader
from components.system.child_environment import child_environment
from components.system.disk import RUN_BYTES, DiskFull, free_bytes, has_no_files
from components.system.guarded import Guarded
from components.system.lifeline import watch
from components.system.python_process import python_command
from components.system.scratch import temporary_folder
from model.frozen_config import FrozenConfig
from pipeline.config import RunConfig
from pipeline.container_engine import engine_address, require_images, rootless_podman
from pipeline.containers import ContainerPlan, container_arguments, plan_containers, run_container
from pipeline.killed_steps import KilledSteps
from pipeline.step_processes import StepProcesses, fork_steps
from pipeline.steps import LastStep, Step

_POLL_S = 0.1
_REPORT_BYTES = 2**20
_SIGNALLED = 128
"""A guardian ends with this and the number of the signal that ended its command."""
LIFELINE_FILE = "lifeline"
EVENTS_FILE = "events.jsonl"
"""Files in the folder of a run."""


@dataclass
class LocalOutcome:
    """Outcome of a run: the result and the duration of each step."""

    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: CelebditError | None = None
    closed: bool = False
    """Whether the exit handler has closed the run in MLflow."""
    _started_s: dict[str, float] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Record one event."""
        if event.kind == "started":
            self._started_s[event.step] = event.at_s
        elif event.kind == "result":
            self.results[event.step] = event.facts["manifest"]
        if event.kind in ("finished", "failed") and event.step in self._started_s:
            self.seconds[event.step] = round(event.at_s - self._started_s.pop(event.step), 2)
        if event.kind == "finished" and event.step == "finalize":
            self.closed = True
        if event.kind == "failed" and self.failure is None:
            facts = event.facts
            self.failure = error_for_exit_code(int(facts["exit_code"]), f"{event.step}: {facts['message']}", hint=facts.get("hint"))


class LocalRun(FrozenConfig):
    """Input of the process that runs kfp's local runner."""

    arguments: dict[str, str]
    """Section of the configuration -> canonical JSON."""
    preset: str = "run"
    """Name of that configuration."""
    root: str
    """Folder of kfp's artifacts."""
    containers: ContainerPlan | None = None
    last_step: LastStep = "register"


def run_locally(
    config: RunConfig,
    folder: Path,
    environment: Mapping[str, str],
    *,
    on_event: Callable[[Event], None],
    in_containers: bool = False,
    last_step: LastStep = "register",
) -> LocalOutcome:
    """Run the graph with `config` and wait for its end; the local files of the run are written below `folder`.

    Raises:
        BadInput: if `in_containers` is set and no container engine works here.
        KeyboardInterrupt: after the run was stopped.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config, plan = with_absolute_paths(config), None
    with ExitStack() as stack:
        if in_containers:
            # Containers write as another user, so they get a folder of their own.
            environment = {
                **environment,
                WORK_DIR: f"{environment[WORK_DIR]}-containers",
                "DOCKER_HOST": stack.enter_context(engine_address()),
            }
            rootless = rootless_podman(environment["DOCKER_HOST"])
            plan = plan_containers(config, folder, environment, run_id=environment[RUN_ID], rootless_podman=rootless)
            require_images(environment["DOCKER_HOST"], (plan.cpu, plan.gpu))
        # kfp (2.17) and MLflow (3.17) leave temporary folders behind.
        environment = {**environment, "TMPDIR": str(stack.enter_context(temporary_folder()))}
        preset = environment.get(PRESET) or "run"
        run = LocalRun(arguments=config.sections(), preset=preset, root=str(folder / "kfp"), containers=plan, last_step=last_step)
        return _run(run, folder, environment, on_event)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return `config` for steps that run in another folder than this process."""
    kind, evaluation = kind_of(config.data.source), config.evaluation
    data = config.data
    if kind.local_path is not None and "://" not in data.source:
        data = data.model_copy(update={"source": str(kind.local_path(data.source).absolute())})
    weights = {
        name: str(Path(location).absolute())
        for name, location in (("weights", evaluation.weights), ("vgg_weights", evaluation.vgg_weights))
        if location is not None and "://" not in location
    }
    return config.model_copy(update={"data": data, "evaluation": evaluation.model_copy(update=weights)})


def _run(spec: LocalRun, folder: Path, environment: Mapping[str, str], on_event: Callable[[Event], None]) -> LocalOutcome:
    events_path, spec_path = folder / EVENTS_FILE, folder / "arguments.json"
    spec_path.write_text(spec.model_dump_json())
    reader, outcome = EventReader(events_path), LocalOutcome()

    def read_events() -> None:
        for event in reader.read():
            outcome.add(event)
            on_event(event)

    with (folder / "log.txt").open("ab") as log:
        command = python_command("pipeline.local", str(spec_path.absolute()))
        engine = {name: value for name, value in environment.items() if spec.containers is not None and name.startswith("DOCKER_")}
        steps = child_environment("step", environment, **engine, **{EVENTS: str(events_path.absolute())})
        runner = Guarded(command, lifeline=folder / LIFELINE_FILE, environment=steps, output=log, folder=folder)
        try:
            while (status := runner.poll()) is None:
                read_events()
                time.sleep(_POLL_S)
        except BaseException:
            runner.stop()
            read_events()
            raise
    read_events()
    if status != 0 and outcome.failure is None:
        outcome.failure = _full_disk(folder, Path(environment[WORK_DIR])) or TemporaryFailure(
            f"the local pipeline runner {cause_of(_SIGNALLED - status if status > _SIGNALLED else status)}",
            hint=f"see its log, {folder / 'log.txt'}, and run it again: finished work is kept",
        )
    return outcome


def _full_disk(*folders: Path) -> DiskFull | None:
    """Return the error for the fullest of `folders` if it is so full that a step could not report its own."""
    fullest = min(folders, key=free_bytes)
    if free_bytes(fullest) < _REPORT_BYTES:
        return DiskFull.of(fullest, "a run", needed_bytes=RUN_BYTES)
    return next((DiskFull.of_files(folder, "a run") for folder in folders if has_no_files(folder)), None)


def main(spec_path: Path) -> None:
    """Run kfp's local runner; the entry point of its process."""
    import_kfp_without_its_client()
    # Importing kfp takes seconds, and only this process needs it.
    from kfp import local  # noqa: PLC0415
    from kfp.local import docker_task_handler  # noqa: PLC0415

    from pipeline.graph import build_graph  # noqa: PLC0415

    spec = LocalRun.model_validate_json(spec_path.read_text())
    steps = fork_kfp_steps() if spec.containers is None and sys.platform.startswith("linux") else None
    if (lifeline := lifeline_path()) is not None:
        watch(lifeline)
    configure: Callable[[Step, Any], None] = lambda step, task: None  # noqa: E731
    runner: Any = local.SubprocessRunner(use_venv=False)
    if spec.containers is not None:
        plan = spec.containers
        docker_task_handler.run_docker_container = run_container
        runner = local.DockerRunner(**container_arguments(plan, os.environ, user_id=os.getuid()))

        def configure(step: Step, task: Any) -> None:
            task.set_container_image(plan.gpu if step.image == "gpu" else plan.cpu)

    quote_interpreter()
    local.init(runner=runner, pipeline_root=spec.root, raise_on_error=True)
    try:
        build_graph({spec.preset: spec.arguments}, configure, last_step=spec.last_step)()
    except RuntimeError as error:  # the events have the error; kfp only has the name of the step
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        if steps is not None:
            steps.close()


def import_kfp_without_its_client() -> None:
    """Import the package `kfp` as its executor does: its client, and Kubernetes' with it, takes 0.4 s and talks to a cluster."""
    os.environ["_KFP_RUNTIME"] = "true"
    try:
        import kfp  # noqa: F401, PLC0415
    finally:
        del os.environ["_KFP_RUNTIME"]  # kfp's language for pipelines, which is imported next, is left out too where it is set


def fork_kfp_steps() -> StepProcesses:
    """Let kfp's local runner fork its steps, and return where they are forked; call it before a thread is started."""
    from kfp.local import subprocess_task_handler  # noqa: PLC0415

    start, steps, killed = subprocess_task_handler.run_local_subprocess, fork_steps(), KilledSteps()

    def run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        status = steps.run(full_command, env_vars) if steps.can_run(full_command) else int(start(full_command, env_vars))
        killed.report(full_command, status)
        return status

    subprocess_task_handler.run_local_subprocess = run
    return steps


def quote_interpreter() -> None:
    """Let kfp's local runner use an interpreter at any path: kfp (2.17) puts it into a shell's command as it is."""
    from kfp.local import subprocess_task_handler  # noqa: PLC0415

    replace = subprocess_task_handler.replace_python_executable
    subprocess_task_handler.replace_python_executable = lambda command, python: replace(command, shlex.quote(python))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
