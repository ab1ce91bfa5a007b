"""Log the scores of candidates to MLflow: a child of the training's run, with one chart per metric and a line per EMA width."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.choosing.scores import Measured

if TYPE_CHECKING:
    from components.runtime.context import StepContext

TABLE_FILE = "candidates.json"


def log_scores(measured: Sequence[Measured], facts: dict[str, Any], training_run_id: str, context: "StepContext") -> str:
    """Log every metric of every candidate at its step, and the table as an artifact; return the address of the run."""
    tracking, first = context.tracking, measured[0].report
    run = tracking.step_run(
        f"choose-{first.protocol_digest[:8]}", run_key=first.run_key, name=f"choose-{first.run_key}", parent_id=training_run_id
    )
    with tracking.mark_running(run) as run_id:
        tracking.set_tags(run_id, {"protocol.digest": first.protocol_digest, "protocol.name": first.protocol.name})
        for entry in measured:
            prefix = f"sigma_rel_{entry.candidate.ema}"
            values = {f"{key}/{prefix}": value for key, value in entry.report.metrics.items()}
            tracking.log_values(run_id, values, step=entry.candidate.step)
        tracking.log_text(run_id, json.dumps(facts, indent=2), TABLE_FILE)
    return tracking.run_url(run_id)
