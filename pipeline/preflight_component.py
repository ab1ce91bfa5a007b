"""The preflight step as a KFP component: a thin contract around `resolution.py` and `components/preflight/`.

It is here and not in `components/preflight/`, because it resolves the configuration of all steps, which `components/` does not know.
"""

from typing import NamedTuple

from kfp import dsl

from components.deployment import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def preflight(presets: str, preset: str, overrides: str, licence_accepted_by: str) -> NamedTuple(  # type: ignore[valid-type]
    "Sections",
    data=str,
    network=str,
    diffusion=str,
    optimizer=str,
    training=str,
    distill=str,
    sampling=str,
    evaluation=str,
    gate=str,
    registry=str,
    resources=str,
    features=str,
):
    """Resolve the configuration, check storage, MLflow, credentials, weights, disk and devices, and open the MLflow run.

    Args:
        presets: The configurations of this pipeline by preset, as JSON.
        preset: The preset of this run.
        overrides: Settings to change, as on the command line.
        licence_accepted_by: Who accepts the licence of the data, or nothing.

    Returns:
        The sections of the configuration as canonical JSON, for the steps that follow, and what scores during training are measured on.
    """
    from components.runtime.context import step

    with step("preflight") as context:
        from components.preflight.preflight import run
        from components.train.teacher import with_teacher
        from pipeline.resolution import resolve

        config = resolve(presets, preset=preset, overrides=overrides, licence_accepted_by=licence_accepted_by)
        evaluation = config.evaluation
        run(
            config.resources,
            evaluation.weights,
            context.with_preset(preset),
            model_name=config.registry.model_name,
            vgg_weights=evaluation.vgg_weights,
            weights_sha256=evaluation.weights_sha256,
            vgg_weights_sha256=evaluation.vgg_weights_sha256,
            extractor=evaluation.extractor,
            configuration=config.toml(),
        )
        with_teacher(config.recipe, context.store, context.layout)
    return (*config.sections().values(), config.features())
