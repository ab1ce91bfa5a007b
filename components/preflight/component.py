"""The preflight step as a KFP component: a thin contract around `preflight.py`."""

from kfp import dsl

from components.deployment import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def preflight(evaluation: str, resources: str, registry: str) -> str:
    """Check storage, MLflow, credentials, weights, disk and devices before anything heavy starts, and open the MLflow run.

    Args:
        evaluation: The `evaluation` section as canonical JSON.
        resources: The `resources` section as canonical JSON.
        registry: The `registry` section as canonical JSON.

    Returns:
        The word "ready".
    """
    from components.runtime.context import step

    with step("preflight") as context:
        import json

        from components.preflight.preflight import run
        from components.registry.config import RegistryConfig
        from components.resources import ResourcesConfig
        from components.runtime.context import read_section

        settings = json.loads(evaluation)
        machine = read_section(ResourcesConfig, resources, name="resources")
        run(
            machine,
            settings.get("weights"),
            context,
            model_name=read_section(RegistryConfig, registry, name="registry").model_name,
            vgg_weights=settings.get("vgg_weights"),
            weights_sha256=settings.get("weights_sha256"),
            vgg_weights_sha256=settings.get("vgg_weights_sha256"),
            extractor=settings.get("extractor", "inception-v3-compat"),
        )
    return "ready"
