"""The preflight step as a KFP component: a thin contract around `preflight.py`."""

from kfp import dsl

from components.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def preflight(evaluation: str, resources: str) -> str:
    """Check storage, MLflow, credentials, weights, disk and devices before anything heavy starts, and open the MLflow run.

    Args:
        evaluation: The `evaluation` section as canonical JSON.
        resources: The `resources` section as canonical JSON.

    Returns:
        The word "ready".
    """
    from components.context import step

    with step("preflight") as context:
        import json

        from components.context import read_section
        from components.preflight.preflight import run
        from components.resources import ResourcesConfig

        weights = json.loads(evaluation).get("weights")
        run(read_section(ResourcesConfig, resources, name="resources"), weights, context)
    return "ready"
