"""The evaluate step as a KFP component: a thin contract around `evaluate.py`."""

from kfp import dsl

from components.deployment import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def evaluate(
    checkpoint: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    checkpoint_digest: str,
    evaluation: str,
    sampling: str,
    resources: str,
    registry: str,
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    samples: dsl.Output[dsl.HTML],
) -> str:
    """Sample images from the checkpoint and measure their distance to the dataset under a stated protocol.

    Args:
        checkpoint: The checkpoint's manifest.
        dataset: The dataset's manifest.
        checkpoint_digest: The checkpoint's digest, so that KFP's cache key follows the weights.
        evaluation: The `evaluation` section as canonical JSON.
        sampling: The `sampling` section as canonical JSON.
        resources: The `resources` section as canonical JSON.
        registry: The `registry` section as canonical JSON; the champion of this model is measured too.
        report: The evaluation's manifest: protocol and metrics.
        metrics: The metrics, for KFP's run comparison.
        samples: A grid of samples, for KFP's run page.

    Returns:
        The protocol's digest.
    """
    from components.runtime.context import step

    with step("evaluate") as context:
        from pathlib import Path

        from components.errors import DataRefused
        from components.evaluate.config import EvaluationConfig
        from components.evaluate.evaluate import run
        from components.evaluate.page import samples_page
        from components.manifests import CheckpointManifest, DatasetManifest
        from components.registry.config import RegistryConfig
        from components.resources import ResourcesConfig
        from components.runtime.context import read_section
        from model.config import SamplingConfig

        trained = CheckpointManifest.load(Path(checkpoint.path))
        if trained.digest != checkpoint_digest:
            raise DataRefused(f"the checkpoint's manifest is of {trained.digest}, the pipeline requested {checkpoint_digest}")
        manifest = run(
            trained,
            DatasetManifest.load(Path(dataset.path)),
            read_section(EvaluationConfig, evaluation, name="evaluation"),
            read_section(SamplingConfig, sampling, name="sampling"),
            read_section(ResourcesConfig, resources, name="resources"),
            read_section(RegistryConfig, registry, name="registry").model_name,
            context,
        )
        context.write_manifest(manifest, report)
        for key, value in manifest.metrics.items():
            metrics.log_metric(key, value)
        Path(samples.path).write_text(samples_page(manifest, context.store, context.layout))
    return manifest.protocol_digest
