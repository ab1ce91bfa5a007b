"""Promotion logs of earlier releases: parameters of MLflow runs, which whoever may write to their experiment could make.

Promises: only reads. Entries about an earlier model of the same name are left out.
"""

from dataclasses import replace

from components.registry.promotions.moves import Move, Standing, clean_name, clean_text, order, standing_after
from components.registry.promotions.state import RegistryState
from components.tracking.client import Tracking
from components.tracking.tags import TAG_KIND

TAG_MODEL = "celebdit.model"


def old_moves(tracking: Tracking, model: str, created_ms: int) -> list[Move]:
    """Return the entries about the model that was made at `created_ms`, from the runs of all experiments, deleted ones included."""
    moves: dict[str, Move] = {}
    for run in tracking.search_all_runs({TAG_KIND: "registry-log", TAG_MODEL: model}):
        for entry_id, text in run.data.params.items():
            move = Move.parse(entry_id, text)
            if move is not None and move.is_of_model(created_ms):
                reason, by = clean_text(move.reason), clean_name(move.by)
                moves[entry_id] = replace(move, reason=reason, by=by, run_id=run.info.run_id, model_created_ms=created_ms)
    return order(moves.values())


def old_standing(moves: list[Move], state: RegistryState) -> Standing:
    """Return what the aliases should point to by the entries of an earlier release."""
    return standing_after([replace(move, run_id=None) for move in moves], state.versions)
