"""The summary of a pipeline run for KFP's run page: score, gate, version and links, as Markdown of a few lines.

Pure; the pages with metrics and samples are those of evaluate and gate.
"""

from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision, RegisteredVersion
from components.reports.plural import plural

_METRICS_SHOWN = 8


def summary_markdown(
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    report: EvaluationReport,
    decision: GateDecision,
    version: RegisteredVersion,
    *,
    links: dict[str, str],
) -> str:
    """Return the summary; `links` is the text of each link to its address."""
    lines = [
        f"# {version.name} version {version.version}",
        "",
        f"**{report.headline} = {report.metrics[report.headline]:.4g}**, gate: {decision.decision}"
        + (f" ({'; '.join(decision.reasons)})" if decision.reasons else ""),
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(name)} | {value:.4g} |" for name, value, _ in report.metric_rows()[:_METRICS_SHOWN]),
        f"| aliases | {_cell(', '.join(version.aliases) or 'none')} |",
        f"| training | {plural(checkpoint.step, 'step')}, run {checkpoint.run_key} |",
        f"| checkpoint | {checkpoint.digest[:12]} |",
        f"| dataset | {_cell(dataset.name)}, {plural(dataset.num_images, 'image')}, {dataset.digest[:12]} |",
        f"| protocol | {_cell(report.protocol.name)}, {report.protocol_digest[:12]} |",
        "",
        *(f"- [{text}]({address})" for text, address in links.items()),
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text that cannot end its cell or become a link."""
    return " ".join(text.split()).translate({ord(mark): f"\\{mark}" for mark in "|[]<`*_"})
