"""The gate step as a KFP component: a thin contract around `gate.py`."""

from kfp import dsl

from components.deployment import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def gate(
    report: dsl.Input[dsl.Artifact],
    gate: str,
    registry: str,
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> str:
    """Decide whether the checkpoint is good enough to be registered.

    Args:
        report: The evaluation's manifest.
        gate: The `gate` section as canonical JSON.
        registry: The `registry` section as canonical JSON; the challenger is compared with the champion of this model.
        decision: The decision's manifest: pass or fail, and why.
        page: The decision with all metrics and sample grids, for KFP's run page.

    Returns:
        "pass" or "fail".
    """
    from components.runtime.context import step

    with step("gate") as context:
        from pathlib import Path

        from components.gate.config import GateConfig
        from components.gate.gate import run
        from components.manifests import EvaluationReport
        from components.registry.config import RegistryConfig
        from components.runtime.context import read_section

        name = read_section(RegistryConfig, registry, name="registry").model_name
        manifest, html = run(EvaluationReport.load(Path(report.path)), read_section(GateConfig, gate, name="gate"), name, context)
        Path(page.path).write_text(html)
        context.write_manifest(manifest, decision)
    return manifest.decision
