"""The register step as a KFP component: a thin contract around `register.py`."""

from kfp import dsl

from components.deployment import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def register(
    checkpoint: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    report: dsl.Input[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact],
    sampling: str,
    registry: str,
    version: dsl.Output[dsl.Model],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Make the checkpoint a version in the MLflow model registry, try it out, and point `challenger` at it.

    Args:
        checkpoint: The checkpoint's manifest.
        dataset: The dataset's manifest.
        report: The evaluation's manifest.
        decision: The gate's manifest.
        sampling: The `sampling` section as canonical JSON: how the served model draws by default.
        registry: The `registry` section as canonical JSON.
        version: The registered version's manifest.
        summary: Score, version and links, for KFP's run page.

    Returns:
        The version's number.
    """
    from components.runtime.context import step

    with step("register") as context:
        from pathlib import Path

        from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision
        from components.register.register import run
        from components.register.summary import summary_markdown
        from components.registry.config import RegistryConfig
        from components.runtime.context import read_section
        from components.tracking.ui_pages import version_page
        from model.config import SamplingConfig

        inputs = (
            CheckpointManifest.load(Path(checkpoint.path)),
            DatasetManifest.load(Path(dataset.path)),
            EvaluationReport.load(Path(report.path)),
            GateDecision.load(Path(decision.path)),
        )
        manifest = run(
            *inputs,
            read_section(SamplingConfig, sampling, name="sampling"),
            read_section(RegistryConfig, registry, name="registry"),
            context,
        )
        context.write_manifest(manifest, version)
        links = {"the model version in MLflow": f"{context.settings.mlflow_uri}/{version_page(manifest.name, manifest.version)}"}
        links["the run in MLflow"] = context.tracking.run_url(context.tracking.pipeline_run().info.run_id)
        Path(summary.path).write_text(summary_markdown(*inputs, manifest, links=links))
    return manifest.version
