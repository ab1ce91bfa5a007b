"""What each step of a run would do: reuse what is finished, continue what is not, or run; and why.

Promises: reads only; the looks are those of the steps, except that they believe names and commits: a step verifies the bytes of what it
reuses, and makes again what is damaged. What is not known yet is a value, not an error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from components.errors import BadInput, CelebditError, DataRefused
from components.evaluate.spec import REPORT_FILE, EvaluateSpec
from components.ingest.dataset.requests import has_same_terms, recorded_dataset, request_digest, request_uri
from components.ingest.sources.open_source import open_source, require_consent
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport
from components.reports.plural import plural
from components.storage.reader import StoreReader
from components.stores.checkpoint_commit import Commit, read_commit
from components.stores.checkpoint_names import CommittedCheckpoint, committed_checkpoints
from components.stores.dataset_content import MANIFEST
from components.stores.layout import StoreLayout
from components.train.spec import run_key
from components.train.teacher import with_teacher
from model.checkpoint_manifest import CheckpointInvalid
from pipeline.config import RunConfig

T = TypeVar("T")
Action = Literal["reuse", "continue", "run", "unknown"]


@dataclass(frozen=True)
class PlannedStep:
    """What a step would do, and why."""

    name: str
    action: Action
    reason: str


@dataclass(frozen=True)
class PlannedSteps:
    """All steps, and what was found of an earlier run of the same configuration."""

    steps: tuple[PlannedStep, ...]
    dataset: DatasetManifest | None = None
    run_key: str | None = None
    done_steps: int = 0
    """Optimiser steps that a stored checkpoint has already."""
    is_evaluated: bool = False


@dataclass(frozen=True)
class StoreView:
    """A store to look into; `reader` is None if it cannot be reached, for the reason `problem`."""

    reader: StoreReader | None
    layout: StoreLayout
    problem: str = ""


def plan_steps(config: RunConfig, view: StoreView) -> PlannedSteps:
    """Look for what earlier runs have finished of `config`."""
    return _Lookup(config, view).steps()


def find_dataset(config: RunConfig, view: StoreView) -> DatasetManifest | None:
    """Return the dataset that a run of `config` would reuse; None if there is none, or the store cannot be read."""
    return _Lookup(config, view).find_dataset()


class _Lookup:
    def __init__(self, config: RunConfig, view: StoreView) -> None:
        self._config = config
        self._view = view
        self._recipe = config.recipe

    def steps(self) -> PlannedSteps:
        ingest, dataset = self._plan_or_unknown("ingest", self._ingest)
        refused_teacher = self._refused_teacher()
        if dataset is None:
            after: Action = "unknown" if ingest.action == "unknown" else "run"
            if refused_teacher is not None:
                return PlannedSteps((_preflight(), ingest, refused_teacher, *self._after_train()))
            return PlannedSteps((_preflight(), ingest, *self._after_ingest(after, num_images=self._num_files())))
        if refused := self._refused_train(dataset.num_images) or refused_teacher:
            return PlannedSteps((_preflight(), ingest, refused, *self._after_train()), dataset)
        key = run_key(self._recipe.identity(dataset.digest))
        train, checkpoint = self._plan_or_unknown("train", lambda: self._train(key))
        done = 0 if checkpoint is None else checkpoint.step
        if checkpoint is None or done != self._config.training.total_steps:
            later = tuple(self._after_train())
            return PlannedSteps((_preflight(), ingest, train, *later), dataset, key, done)
        evaluate, report = self._plan_or_unknown("evaluate", lambda: self._evaluate(dataset, key, checkpoint))
        later = (evaluate, *self._after_evaluate())
        return PlannedSteps((_preflight(), ingest, train, *later), dataset, key, done, report is not None)

    def find_dataset(self) -> DatasetManifest | None:
        return self._plan_or_unknown("ingest", self._ingest)[1]

    def _plan_or_unknown(self, name: str, look: Callable[[], tuple[PlannedStep, T | None]]) -> tuple[PlannedStep, T | None]:
        """Look, and turn an error into a step that is unknown."""
        if self._view.reader is None:
            return PlannedStep(name, "unknown", self._view.problem), None
        try:
            return look()
        except CelebditError as error:
            return PlannedStep(name, "unknown", str(error).partition("\n")[0]), None

    def _ingest(self) -> tuple[PlannedStep, DatasetManifest | None]:
        data = self._config.data
        assert self._view.reader is not None
        require_consent(data)
        source = open_source(data)
        if source is None:
            return self._of_remote_source()
        uri = request_uri(request_digest(source, data), data, self._view.layout)
        made = recorded_dataset(uri, data, self._view.reader)
        if made is None:
            return PlannedStep("ingest", "run", f"no dataset of this source with these settings is in {self._view.layout.root}"), None
        if not self._view.reader.exists(self._view.layout.dataset(data.name) / made.digest / MANIFEST):
            return PlannedStep("ingest", "run", f"dataset {made.digest[:12]} of this source is not stored any more"), None
        if not has_same_terms(made, data):
            return PlannedStep("ingest", "run", "the licence, or who accepted it, is another one than that of the stored dataset"), None
        return PlannedStep("ingest", "reuse", f"dataset {made.digest[:12]} has {plural(made.num_images, 'image')} of this source"), made

    def _of_remote_source(self) -> tuple[PlannedStep, DatasetManifest | None]:
        """Return the newest dataset that was made of the same address: whether its content is still the same is not known yet."""
        assert self._view.reader is not None
        data, layout = self._config.data, self._view.layout
        newest = None
        for item in sorted(self._view.reader.list(layout.requests(data.name)), key=lambda item: str(item.modified or "")):
            made = recorded_dataset(item.uri, data, self._view.reader)
            if made is not None and made.source.startswith(data.source) and has_same_terms(made, data):
                newest = made
        if newest is None:
            return PlannedStep("ingest", "run", f"no dataset of {data.source} is in {layout.root}"), None
        reason = f"dataset {newest.digest[:12]} of {newest.source}, if the source has not changed since: it is asked at the start"
        return PlannedStep("ingest", "reuse", reason), newest

    def _train(self, key: str) -> tuple[PlannedStep, CommittedCheckpoint | None]:
        assert self._view.reader is not None
        total = self._config.training.total_steps
        names = [item.uri for item in self._view.reader.list(self._view.layout.run(key).checkpoints)]
        committed = committed_checkpoints(names)
        last = [checkpoint for checkpoint in committed if checkpoint.step == total]
        for checkpoint in last:
            if not self._is_score_due(checkpoint):
                return PlannedStep("train", "reuse", f"run {key} has a checkpoint of step {total}"), checkpoint
        if last:
            return PlannedStep("train", "continue", f"run {key} has a checkpoint of step {total}, whose score is left"), last[0]
        earlier = [checkpoint for checkpoint in committed if checkpoint.step < total]
        if earlier:
            newest = earlier[0]
            reason = f"run {key} has a checkpoint of step {newest.step}; {plural(total - newest.step, 'step')} left"
            return PlannedStep("train", "continue", reason), newest
        if committed:
            reason = f"run {key} was trained to step {committed[0].step}, beyond training.total_steps {total}: it will be refused"
            return PlannedStep("train", "unknown", reason), None
        return PlannedStep("train", "run", f"run {key} has no checkpoint; {plural(total, 'step')}"), None

    def _refused_train(self, num_images: int) -> PlannedStep | None:
        """Return the train step if it will refuse to score samples against `num_images` training images."""
        try:
            self._config.training.check_score_images(num_images)
        except ValueError as error:
            return PlannedStep("train", "unknown", f"training.{error}: it will be refused")
        return None

    def _refused_teacher(self) -> PlannedStep | None:
        """Look up the teacher of a distillation for the run's identity; return the train step if it will refuse it.

        A store that cannot be read says nothing about the teacher.
        """
        if self._view.reader is None:
            return None
        try:
            self._recipe = with_teacher(self._recipe, self._view.reader, self._view.layout)
        except CelebditError as error:
            problem = "; ".join(error.message.splitlines())
            verdict = ": it will be refused" if isinstance(error, BadInput | DataRefused) else ""
            hint = "" if error.hint is None else f" ({error.hint})"
            return PlannedStep("train", "unknown", f"{problem}{verdict}{hint}")
        return None

    def _num_files(self) -> int | None:
        """Return how many files the source has, at least as many as are trained on; None if that is not known or not needed."""
        if self._config.training.score_every_steps is None:
            return None
        try:
            source = open_source(self._config.data)
        except CelebditError:
            return None
        return None if source is None else source.count()

    def _is_score_due(self, checkpoint: CommittedCheckpoint) -> bool:
        if not self._config.training.is_milestone(checkpoint.step):
            return False
        return self._config.training.is_score_due(checkpoint.step, self._commit(checkpoint).notes)

    def _commit(self, checkpoint: CommittedCheckpoint) -> Commit:
        assert self._view.reader is not None
        try:
            return read_commit(checkpoint.uri, self._view.reader)
        except CheckpointInvalid as error:
            raise DataRefused(f"{error}; the train step sets its checkpoint aside") from error

    def _evaluate(self, dataset: DatasetManifest, key: str, checkpoint: CommittedCheckpoint) -> tuple[PlannedStep, EvaluationReport | None]:
        assert self._view.reader is not None
        digest = self._commit(checkpoint).digest
        reference = CheckpointManifest(
            run_key=key,
            uri=str(checkpoint.uri),
            digest=digest,
            step=checkpoint.step,
            dataset_digest=dataset.digest,
            recipe=self._recipe.training_recipe,
        )
        spec = EvaluateSpec(
            checkpoint=reference,
            model=self._recipe.model_spec,
            dataset=dataset,
            evaluation=self._config.evaluation,
            sampling=self._config.sampling,
            resources=self._config.resources,
        )
        uri = spec.report_uri(self._view.layout) / REPORT_FILE
        if not self._view.reader.exists(uri):
            return PlannedStep("evaluate", "run", f"checkpoint {digest[:12]} was not measured under this protocol"), None
        report = EvaluationReport.parse(self._view.reader.get_bytes(uri), origin=str(uri))
        value = report.metrics[report.headline]
        return PlannedStep("evaluate", "reuse", f"checkpoint {digest[:12]} has {report.headline} = {value:.3f} under this protocol"), report

    def _after_ingest(self, action: Action, *, num_images: int | None) -> Iterator[PlannedStep]:
        total = self._config.training.total_steps
        reason = f"{'not known before ingest' if action == 'unknown' else 'the dataset is new'}; {plural(total, 'step')}"
        refused = None if num_images is None else self._refused_train(num_images)
        yield refused or PlannedStep("train", action, reason)
        yield from self._after_train()

    def _after_train(self) -> Iterator[PlannedStep]:
        yield PlannedStep("evaluate", "run", "the checkpoint will be new")
        yield from self._after_evaluate()

    def _after_evaluate(self) -> Iterator[PlannedStep]:
        yield PlannedStep("gate", "run", "compares the score with the bounds and with the champion, in seconds")
        model = self._config.registry.model_name
        yield PlannedStep("register", "run", f"if the gate passes; a checkpoint that is a version of {model} already stays that version")


def _preflight() -> PlannedStep:
    return PlannedStep("preflight", "run", "checks the servers and the weights of the metrics, in seconds")
