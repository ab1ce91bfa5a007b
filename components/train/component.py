"""The train step as a KFP component: a thin contract around `train.py`."""

from kfp import dsl

from components.deployment import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def train(
    dataset: dsl.Input[dsl.Dataset],
    dataset_digest: str,
    network: str,
    diffusion: str,
    optimizer: str,
    training: str,
    sampling: str,
    resources: str,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    samples: dsl.Output[dsl.HTML],
    features: str = "null",
    distill: str = "null",
) -> str:
    """Train the denoiser on all devices of the node, continuing from the newest valid checkpoint in object storage.

    Args:
        dataset: The dataset's manifest.
        dataset_digest: The dataset's digest, so that KFP's cache key follows the data.
        network: The `network` section as canonical JSON.
        diffusion: The `diffusion` section as canonical JSON.
        optimizer: The `optimizer` section as canonical JSON.
        training: The `training` section as canonical JSON.
        sampling: The `sampling` section as canonical JSON, for the sample grids of the run.
        resources: The `resources` section as canonical JSON.
        checkpoint: The checkpoint's manifest: location, digest, step, recipe.
        metrics: Loss, images per second and steps, for KFP's run comparison.
        samples: The last grid of samples, for KFP's run page.
        features: The extractor for scores during training as canonical JSON; null if there are none.
        distill: The `distill` section as canonical JSON; null if the network learns from its initial weights.

    Returns:
        The checkpoint's digest.
    """
    from components.runtime.context import step

    with step("train") as context:
        from pathlib import Path

        from components.errors import DataRefused
        from components.manifests import DatasetManifest
        from components.resources import ResourcesConfig
        from components.runtime.context import read_section
        from components.train.kfp_metrics import kfp_metrics
        from components.train.kfp_samples import samples_page
        from components.train.train import read_features, read_recipe, run

        data = DatasetManifest.load(Path(dataset.path))
        if data.digest != dataset_digest:
            raise DataRefused(f"the dataset's manifest has digest {data.digest}, the pipeline requested {dataset_digest}")
        recipe = read_recipe(network, diffusion, optimizer, training, sampling, distill)
        limits = read_section(ResourcesConfig, resources, name="resources")
        manifest = run(recipe, data, limits, context, features=read_features(features))
        context.write_manifest(manifest, checkpoint)
        for key, value in kfp_metrics(manifest, context).items():
            metrics.log_metric(key, value)
        Path(samples.path).write_text(samples_page(manifest, context))
    return manifest.digest
