"""The finalize step as a KFP component: the exit handler around `finalize.py`."""

from typing import NamedTuple

from kfp import dsl

from components.deployment import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def finalize(status: dsl.PipelineTaskFinalStatus) -> NamedTuple("Outputs", score=str, version=str):  # type: ignore[valid-type]
    """Close every MLflow run of this pipeline run with its status and log a summary; always runs.

    Args:
        status: The pipeline's final status, filled in by KFP.

    Returns:
        The headline metric of the evaluation and the number of the registered version; "none" for what the run did not reach.
    """
    from components.runtime.context import step

    with step("finalize") as context:
        from components.finalize.finalize import outcome_of, run

        result = run(outcome_of(str(status.state)), status.error_message or "", context)
    return tuple(result)
