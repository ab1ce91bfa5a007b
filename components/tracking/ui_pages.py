"""Pages of the MLflow UI, as paths below the server's address."""

from collections.abc import Sequence
from urllib.parse import quote


def run_page(run_id: str, experiment_id: str) -> str:
    """Return the page of one run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def version_page(name: str, version: str) -> str:
    """Return the page of one model version."""
    return f"#/models/{quote(name)}/versions/{version}?workflowType=machine_learning"


def runs_page(run_ids: Sequence[str], experiment_id: str) -> str:
    """Return the page with the charts and images of several runs side by side.

    That is the chart view of the experiment, because MLflow's own compare page shows no images; sorting by name keeps step runs from being
    folded into their pipeline's run (MLflow 3.17).
    """
    chosen = quote(f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in run_ids)})")
    shown = f"compareRunsMode=CHART&searchFilter={chosen}&orderByKey={quote('attributes.`run_name`')}&orderByAsc=true"
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&{shown}"
