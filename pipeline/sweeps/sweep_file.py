"""A sweep as a TOML file describes it, validated as a whole before anything starts.

Promises: every combination of the varied settings is a configuration that every step accepts, on every rung and as the final run; all
trials are measured alike; equal sweeps have equal digests, whatever their budget and however many trials run at once.
"""

import difflib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from components.errors import BadInput
from components.evaluate.measured import headline_metric, may_be_negative, measured_metrics
from components.reports.plural import plural
from components.validation import problem_lines
from model.canonical import JsonObject, digest_of
from model.frozen_config import FrozenConfig, TextForm
from pipeline.config import RunConfig, load_tables, override_config, plain_json
from pipeline.config_files import preset_names, read_table
from pipeline.sweeps.space import MOST_COMBINATIONS, Choices, Range, Space, Values, changes_of, label_of, space_problems
from pipeline.trial_sampling import trial_sampling

SamplerName = Literal["grid", "random", "tpe", "qmc", "gp"]
OPTUNA_SAMPLERS = ("tpe", "qmc", "gp")
_MOST_TRIALS = 1000


class SweepConfig(FrozenConfig):
    """The file of a sweep."""

    name: Annotated[str, TextForm(r"[a-z0-9][a-z0-9-]{0,62}", example="demo-dropout")] = Field(
        description="name of the sweep; its MLflow experiment is sweep/NAME"
    )
    base: str = Field(description="preset or TOML file that every trial starts from; a file is relative to this one")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict, description="changes of the base, for the trials and the final run")
    evaluation: dict[str, Any] = Field(
        default_factory=dict, description="changes of the evaluation section for the trials alone, like fewer images"
    )
    sampling: dict[str, Any] | None = Field(
        None,
        description="changes of the sampling section for the trials alone. "
        "Default: UniPC in 20 steps, unless `settings` say how to sample, or the base shifts times or calls the network no more often",
    )
    vary: dict[str, Any] = Field(min_length=1, description="setting -> values, or range {low, high, log}; section -> tables")
    sampler: SamplerName = Field("grid", description="how trials are chosen; tpe, qmc and gp need celebdit[sweep]")
    trials: int | None = Field(None, ge=2, le=_MOST_TRIALS, description="trials to start with. Default: all combinations, for grid alone")
    seed: int = Field(0, ge=0, lt=2**31, description="of the sampler")
    rungs: tuple[Annotated[int, Field(gt=0, le=100_000_000)], ...] = Field(
        min_length=1, max_length=20, description="training steps at which trials are compared; from rung to rung the best train on"
    )
    keep_one_in: int = Field(3, ge=2, le=100, description="of so many trials on a rung one goes on")
    min_finished: float = Field(0.8, gt=0, le=1, description="share of a rung's trials that must have ended before it is decided")
    metric: str | None = Field(None, description="metric that trials are compared by. Default: the headline")
    goal: Literal["minimize", "maximize"] = Field("minimize", description="whether a smaller or a larger metric is better")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        (0,), min_length=1, max_length=10, description="training seeds; a trial's score is the mean over them. The final run has the first"
    )
    budget_device_hours: float | None = Field(
        None, gt=0, description="device hours (of GPUs or CPU ranks) of train and evaluate, final run included. Default: no limit"
    )
    parallel: int = Field(4, ge=1, le=100, description="runs at once on Kubeflow Pipelines; this machine runs one at a time")
    final_steps: int | None = Field(None, gt=0, description="training steps of the final run. Default: the last rung")

    def problems(self) -> Iterator[str]:
        for before, after in zip(self.rungs, self.rungs[1:], strict=False):
            if after <= before:
                yield f"rungs {list(self.rungs)}: {after} is not larger than {before}, the rung before it"
        if self.final_steps is not None and self.final_steps < self.rungs[-1]:
            yield f"final_steps {self.final_steps} must not be smaller than the last rung, {self.rungs[-1]}"
        if len(set(self.seeds)) != len(self.seeds):
            yield f"seeds {list(self.seeds)} names a seed twice"
        if "evaluation" in self.settings and "champion" in self.evaluation:
            yield "evaluation.champion: trials are not compared with the champion; the final run is"


@dataclass(frozen=True)
class Sweep:
    """A validated sweep."""

    config: SweepConfig
    tables: JsonObject
    """The base with the settings of the sweep, for the final run."""
    space: Space

    @cached_property
    def trial_tables(self) -> JsonObject:
        """The base for trials: measured by the sweep's evaluation and sampling sections, without a gate."""
        changes = {f"evaluation.{name}": value for name, value in {**self.config.evaluation, "champion": False}.items()}
        changes |= {f"sampling.{name}": value for name, value in self._trial_sampling().items()}
        return _apply_changes({**self.tables, "gate": {"no_worse_than_champion": False}}, changes)

    def _trial_sampling(self) -> Mapping[str, object]:
        if self.config.sampling is not None:
            return self.config.sampling
        if {"sampler", "num_steps", "eta"} & self.config.settings.get("sampling", {}).keys():
            return {}
        return trial_sampling(override_config(self.tables).sampling)

    def trial(self, values: Mapping[str, Any], *, seed: int, steps: int) -> RunConfig:
        """Return the configuration of a trial with `values` on the rung of so many steps."""
        return override_config(self.trial_tables, changes={**changes_of(values), "training.seed": seed, "training.total_steps": steps})

    def final(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of the winner's final run: the full protocol, the gate and the registration."""
        steps = self.config.final_steps or self.config.rungs[-1]
        return override_config(
            self.tables, changes={**changes_of(values), "training.seed": self.config.seeds[0], "training.total_steps": steps}
        )

    @cached_property
    def num_trials(self) -> int:
        """Trials on the first rung."""
        return self.config.trials or self.space.num_combinations

    @cached_property
    def metric(self) -> str:
        """The key of the metric that trials are compared by."""
        return self.config.metric or headline_metric(self._first.evaluation)

    @property
    def least(self) -> float | None:
        """The least value that the metric can have, or None if it has no bound."""
        return None if may_be_negative(self._first.evaluation, self.metric) else 0.0

    @cached_property
    def digest(self) -> str:
        """Identity of the sweep: what decides which trials there are, how they are measured and which of them go on."""
        config = self.config.model_dump(
            mode="json", exclude={"base", "settings", "sampling", "budget_device_hours", "parallel", "metric", "trials"}
        )
        varied = {name: item.model_dump() if isinstance(item, Range) else item for name, item in self.space.dimensions.items()}
        recipe = self._first.recipe.identity("")
        identity = {**config, "vary": varied, "trials": self.num_trials, "metric": self.metric, "recipe": recipe}
        data = self._first.data.model_dump(mode="json", exclude={"licence_accepted_by"})
        measured = {name: getattr(self._first, name).model_dump(mode="json") for name in ("sampling", "evaluation")}
        return digest_of({**identity, "data": data, **measured})

    @cached_property
    def _first(self) -> RunConfig:
        return self.trial(next(self.space.combinations()), seed=self.config.seeds[0], steps=self.config.rungs[0])


def load_sweep(path: Path, *, changes: Mapping[str, object] | None = None) -> Sweep:
    """Return the sweep that the file at `path` describes; `changes` (`section.key` -> value) are made to its base.

    Raises:
        BadInput: naming field, value and bound of what is wrong, or the combination of varied settings that no run accepts.
    """
    raw = read_table(path)
    try:
        config = SweepConfig.model_validate_json(plain_json(raw))
    except ValidationError as error:
        raise BadInput(f"{path}: " + "\n".join(problem_lines(error, section=None)), hint=_nearest(error)) from error
    space = _space(config, path)
    sweep = Sweep(config, _base_tables(config, path, changes or {}), space)
    _check_sampler(config, path)
    _check_no_teacher(sweep, path)
    _check_size(sweep, path)
    _check_combinations(sweep, path)
    measured = measured_metrics(sweep._first.evaluation)
    if sweep.metric not in measured:
        raise BadInput(
            f"{path}: metric {sweep.metric!r} will not be measured", hint=f"the evaluation of the trials gives {', '.join(measured)}"
        )
    return sweep


def _nearest(error: ValidationError) -> str | None:
    unknown = [str(problem["loc"][0]) for problem in error.errors() if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1]
    names = sorted(SweepConfig.model_fields)
    guesses = [near[0] for name in unknown if (near := difflib.get_close_matches(name, names, n=1, cutoff=0.5))]
    if guesses:
        return f"did you mean {', '.join(guesses)}?"
    return f"known here: {', '.join(names)}" if unknown else None


def _space(config: SweepConfig, path: Path) -> Space:
    dimensions: dict[str, Range | Choices] = {}
    problems: list[str] = []
    for name, options in _flat(config.vary):
        if isinstance(options, list):
            dimensions[name] = options
            continue
        try:
            dimensions[name] = Range.model_validate(options)
        except ValidationError as error:
            problems += problem_lines(error, section=f"vary.{name}")
    space = Space.of(dimensions)
    if problems := problems + list(space_problems(space)):
        raise BadInput(f"{path}: " + "\n".join(problems), hint="write a list of values, or {low = 1e-4, high = 1e-2, log = true}")
    return space


def _flat(vary: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the dimensions of `vary`, whose sections may be tables of settings."""
    for name, options in vary.items():
        if isinstance(options, dict) and "." not in name and not {"low", "high"} & set(options):
            yield from ((f"{name}.{key}", inner) for key, inner in options.items())
        else:
            yield name, options


def _base_tables(config: SweepConfig, path: Path, changes: Mapping[str, object]) -> JsonObject:
    base = config.base if config.base in preset_names() else str(path.parent / config.base)
    tables = load_tables(base)
    layer = {f"{section}.{key}": value for section, table in config.settings.items() for key, value in table.items()}
    return _apply_changes(tables, {**layer, **changes})


def _apply_changes(tables: JsonObject, changes: Mapping[str, object]) -> JsonObject:
    """Return `tables` after `changes`, validated as a configuration of its own and plain again."""
    values: JsonObject = override_config(tables, changes=changes).model_dump(mode="json", exclude_unset=True)
    return values


def _check_sampler(config: SweepConfig, path: Path) -> None:
    """Refuse a sampler of optuna's where it is not installed."""
    if config.sampler in OPTUNA_SAMPLERS and (sys.modules.get("optuna", ...) is None or importlib.util.find_spec("optuna") is None):
        raise BadInput(f"{path}: sampler '{config.sampler}' needs optuna", hint="make extras, or use sampler 'random'")


def _check_no_teacher(sweep: Sweep, path: Path) -> None:
    """Refuse a distillation: trials are found again by the identity of their runs, which names the weights of a teacher."""
    if sweep.tables.get("distill", {}).get("teacher") is not None:
        raise BadInput(f"{path}: a sweep cannot distil a teacher", hint="leave distill out, and distil the winner with `celebdit run`")


def _check_size(sweep: Sweep, path: Path) -> None:
    config, combinations = sweep.config, sweep.space.num_combinations
    if combinations > MOST_COMBINATIONS:
        raise BadInput(f"{path}: vary has {combinations} combinations, at most {MOST_COMBINATIONS} are checked", hint="vary fewer settings")
    if config.sampler == "grid":
        if sweep.space.ranges:
            raise BadInput(f"{path}: sampler 'grid' needs a list of values for {', '.join(sweep.space.ranges)}", hint="or use 'random'")
        if config.trials not in (None, combinations):
            raise BadInput(f"{path}: trials {config.trials} is not the {combinations} combinations of the grid", hint="leave it out")
        if not 2 <= combinations <= _MOST_TRIALS:
            raise BadInput(f"{path}: the grid has {plural(combinations, 'combination')}, 2 to {_MOST_TRIALS} are accepted")
    elif config.trials is None:
        raise BadInput(f"{path}: trials is missing", hint=f"sampler '{config.sampler}' needs the number of trials on the first rung")
    elif not sweep.space.ranges and config.trials > combinations:
        raise BadInput(f"{path}: trials {config.trials} is more than the {combinations} combinations of vary", hint="use sampler 'grid'")


def _check_combinations(sweep: Sweep, path: Path) -> None:
    """Validate every combination, of which any may become a trial or the winner."""
    try:
        assert sweep.trial_tables, "a configuration has sections"
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", hint=error.hint) from error
    for values in sweep.space.combinations():
        try:
            sweep.trial(values, seed=sweep.config.seeds[0], steps=sweep.config.rungs[0])
            sweep.final(values)
        except BadInput as error:
            what = ", ".join(f"{name} {label_of(value)}" for name, value in values.items())
            raise BadInput(f"{path}: no run accepts {what}: {error.message}", hint=error.hint) from error


def values_label(values: Values) -> str:
    """Return the values of a trial on one line."""
    return ", ".join(f"{name.rpartition('.')[2]} {label_of(value)}" for name, value in values.items())
