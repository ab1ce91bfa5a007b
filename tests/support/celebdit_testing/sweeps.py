"""A sweep whose runs cost nothing: its runner returns the report that a run would make, a function of the run's settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celebdit_testing.recipes import dataset_manifest

from components.errors import CelebditError
from components.evaluate.measured import headline_metric
from components.evaluate.spec import EvaluateSpec
from components.manifests import CheckpointReference, EvaluationReport, MetricInterval
from components.train.spec import run_key
from pipeline.config import RunConfig
from pipeline.sweeps.coordinator import TrialOutcome
from pipeline.sweeps.records import Finished, Piece
from pipeline.sweeps.sweep_file import Sweep, load_sweep

METRIC = "eval/fd_randconv_8"
_EVALUATION = """
"network.dropout" = [0.0, 0.1]
[evaluation]
num_images = 8
"""


def small_sweep(more: str = "", *, name: str = "NAME", rungs: str = "[4, 8]", rates: str = "[1e-3, 2e-3]") -> str:
    """The text of a sweep over two learning rates of the smoke preset; `more` goes on in its table `vary`."""
    return f"""
name = "{name}"
base = "smoke"
rungs = {rungs}
keep_one_in = 2
[vary]
optimizer.lr_peak = {rates}
{more.strip()}
"""


SWEEP = small_sweep(_EVALUATION)


def sweep_of(folder: Path, name: str = "tiny", text: str = SWEEP) -> Sweep:
    """The sweep of `text`, as if it was read from a file."""
    path = folder / f"{name}.toml"
    path.write_text(text.replace("NAME", name))
    return load_sweep(path)


def spec_of(config: RunConfig) -> EvaluateSpec:
    """The evaluation of a run of `config`."""
    dataset = dataset_manifest(name=config.data.name, image_px=config.data.image_px, num_images=48)
    key = run_key(config.recipe.identity(dataset.digest))
    steps = config.training.total_steps
    return EvaluateSpec(
        checkpoint=CheckpointReference(run_key=key, uri="c", digest="c" * 64, step=steps, dataset_digest=dataset.digest),
        model=config.recipe.model_spec,
        dataset=dataset,
        evaluation=config.evaluation,
        sampling=config.sampling,
        resources=config.resources,
    )


def report_of(config: RunConfig) -> EvaluationReport:
    """The report that a run of `config` would make: smaller with the learning rate, larger with dropout and seed."""
    spec, steps = spec_of(config), config.training.total_steps
    value = 10 / steps - 1000 * config.optimizer.lr_peak + config.network.dropout + 0.01 * config.training.seed
    return EvaluationReport(
        uri="e",
        protocol_digest=spec.protocol.digest,
        protocol=spec.protocol,
        run_key=spec.checkpoint.run_key,
        checkpoint_uri="c",
        checkpoint_digest="c" * 64,
        checkpoint_step=steps,
        dataset_digest=spec.dataset.digest,
        headline=(key := headline_metric(config.evaluation)),
        metrics={key: value, f"{key}_std": 0.1},
        intervals={key: MetricInterval(low=value - 0.2, high=value + 0.2, std=0.1)},
        grid_uri="grid.png",
    )


@dataclass
class FreeRunner:
    """Runs nothing; `before` each run it does what a test wants, like being killed, and may return an error instead."""

    before: Callable[[Piece | None], CelebditError | None] = lambda piece: None
    ran: list[Any] = field(default_factory=list)
    _next: list[tuple[Piece, RunConfig]] = field(default_factory=list)

    @property
    def free(self) -> int:
        return 1 - len(self._next)

    def start(self, piece: Piece, config: RunConfig) -> str:
        self._next.append((piece, config))
        return f"run-{piece.trial}-{piece.seed}-{piece.steps}"

    def wait(self) -> TrialOutcome | None:
        piece, config = self._next.pop()
        failure = self.before(piece)
        self.ran.append(piece)
        report = report_of(config) if failure is None else None
        return TrialOutcome(piece, f"run-{piece.trial}-{piece.seed}-{piece.steps}", report, failure, device_s=2.0)

    def finish(self, trial: int, config: RunConfig) -> Finished:
        failure = self.before(None)
        if failure is not None:
            raise failure
        self.ran.append("final")
        return Finished(at_s=1.0, trial=trial, run_id="final", gate="pass", version="1", model="m", metric=METRIC, value=1.5, device_s=3.0)
