"""The settings of the next trial: a pure function of the sweep, the trial's number and, for optuna's samplers, the records so far."""

from dataclasses import dataclass
from itertools import islice

from pipeline.sweeps.ranking import rank
from pipeline.sweeps.records import SweepState
from pipeline.sweeps.space import Values
from pipeline.sweeps.sweep_file import Sweep

_MOST_DRAWS = 100


@dataclass(frozen=True)
class Proposal:
    """Settings of a trial, and what chose them."""

    values: Values
    sampler: str
    sampler_version: str | None = None
    history: int = 0


def propose(sweep: Sweep, number: int, state: SweepState) -> Proposal:
    """Return the settings of trial `number`."""
    config = sweep.config
    if config.sampler == "grid":
        return Proposal(next(islice(sweep.space.combinations(), number, None)), "grid")
    if config.sampler == "random":
        return Proposal(_distinct_draw(sweep, number), "random")
    from pipeline.sweeps.optuna_samplers import SAMPLER_VERSION, sample  # noqa: PLC0415 - optuna takes seconds, and is an extra

    scores = rank(state, state.asked, steps=config.rungs[0], seeds=config.seeds, goal=config.goal)
    history = [(dict(state.values(score.trial)), score.mean) for score in sorted(scores, key=lambda score: score.trial)]
    pending = [dict(asked.values) for trial, asked in sorted(state.asked.items()) if trial not in {score.trial for score in scores}]
    values = sample(config.sampler, sweep.space, seed=config.seed, number=number, history=history, pending=pending, goal=config.goal)
    return Proposal(values, config.sampler, SAMPLER_VERSION, len(history))


def _distinct_draw(sweep: Sweep, number: int) -> Values:
    """Return the values of trial `number`, none of which two trials share while there are others."""
    drawn: list[Values] = []
    for index in range(number + 1):
        draws = (sweep.space.draw(sweep.config.seed, index, attempt) for attempt in range(_MOST_DRAWS))
        drawn.append(next((values for values in draws if values not in drawn), sweep.space.draw(sweep.config.seed, index)))
    return drawn[number]
