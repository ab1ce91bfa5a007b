"""Optuna's samplers as pure functions: a study in memory is filled with the sweep's own records and asked once.

Nothing of optuna's is stored. The same optuna, seed, trial number and history give the same settings.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from pipeline.sweeps.counters import integer
from pipeline.sweeps.ranking import Goal
from pipeline.sweeps.space import Range, Space, Values

SAMPLER_VERSION = f"optuna {optuna.__version__}"
_FIRST_RANDOM = 8
"""Trials without a model of the history, unless the sweep has fewer."""


def sample(
    sampler: str,
    space: Space,
    *,
    seed: int,
    number: int,
    history: Sequence[tuple[Values, float]],
    pending: Sequence[Values],
    goal: Goal,
) -> Values:
    """Return the settings of trial `number` after `history` (settings and score), while `pending` trials have no score yet."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: _distribution(dimension) for name, dimension in space.dimensions.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental samplers
        study = optuna.create_study(sampler=_sampler(sampler, seed, number), direction=goal)
        for values, score in history:
            study.add_trial(_trial(space, values, distributions, value=score))
        for values in pending if sampler != "qmc" else ():
            study.add_trial(_trial(space, values, distributions, state=optuna.trial.TrialState.RUNNING))
        if sampler == "qmc":  # which counts its own asks, and takes the space from a finished trial
            if not history:
                study.add_trial(_trial(space, next(space.combinations()), distributions, value=0.0))
            for _ in range(number):
                study.ask(distributions)
        drawn = study.ask(distributions).params
    return {name: _value(dimension, drawn[name]) for name, dimension in space.dimensions.items()}


def _sampler(name: str, seed: int, number: int) -> Any:
    own = integer(seed, "optuna", number)
    samplers: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=own, n_startup_trials=_FIRST_RANDOM),
        "gp": lambda: optuna.samplers.GPSampler(seed=own, n_startup_trials=_FIRST_RANDOM),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=integer(seed, "optuna"), scramble=True),
    }
    return samplers[name]()


def _distribution(dimension: Range | list[Any]) -> Any:
    if not isinstance(dimension, Range):
        return optuna.distributions.CategoricalDistribution([json.dumps(option, sort_keys=True) for option in dimension])
    if dimension.is_whole:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)


def _trial(space: Space, values: Values, distributions: Any, **outcome: Any) -> Any:
    params = {
        name: values[name] if isinstance(dimension, Range) else json.dumps(values[name], sort_keys=True)
        for name, dimension in space.dimensions.items()
    }
    return optuna.trial.create_trial(params=params, distributions=distributions, **outcome)


def _value(dimension: Range | list[Any], drawn: Any) -> Any:
    return dimension.round_value(drawn) if isinstance(dimension, Range) else json.loads(drawn)
