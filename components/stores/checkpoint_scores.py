"""Scores beside checkpoints: what an evaluation measured, for `Retention.best`."""

import json
from collections.abc import Callable, Iterable, Mapping

from components.storage import ObjectMissing, ObjectStore, StoreUri
from components.stores.checkpoint_names import checkpoint_folder
from components.stores.retention import Ranking


def read_ranking(store: ObjectStore, steps: Mapping[StoreUri, int], scores: Iterable[StoreUri], warn: Callable[[str], None]) -> Ranking:
    """Return the values of each metric in `scores`, objects of the checkpoints whose `steps` are given; one that is none is reported."""
    ranking: Ranking = {}
    for score in scores:
        if checkpoint_folder(score) in steps:
            try:
                measured = json.loads(store.get_bytes(score))
                metric, value = str(measured["metric"]), float(measured["value"])
            except (ValueError, KeyError, TypeError, ObjectMissing) as problem:  # the next evaluation writes it again
                warn(f"{score} is not a score and was ignored: {problem}")
                continue
            ranking.setdefault(metric, []).append((value, steps[checkpoint_folder(score)]))
    return ranking
