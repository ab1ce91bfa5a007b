"""The model card of a version: the model, its data and recipe, its metrics with their protocol, its limits, and how to use it.

Promises: a pure function of the manifests; markdown that reads well in the MLflow UI, on a terminal and on a model hub. First what a reader
wants to know: score, gate and how to use it; the JSON of protocol and recipe is last.
"""

import json

from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision
from components.reports.score import score_sentence
from model.config import SamplingConfig
from model.sampler_table import SAMPLERS


def model_card(
    name: str,
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    report: EvaluationReport,
    gate: GateDecision,
    sampling: SamplingConfig,
) -> str:
    """Return the card as markdown."""
    protocol = report.protocol.model_dump(mode="json")
    sections = [
        f"# {name}: face generator, {dataset.image_px}x{dataset.image_px} pixels",
        f"**{_score(report)}**. Gate: **{gate.decision}** ({'; '.join(gate.reasons)}).",
        f"## How to use it\n\n{_usage(name, checkpoint, sampling)}",
        f"## Model\n\n{_summary(checkpoint, dataset)}",
        f"## Data and licence\n\n{_data(dataset)}",
        f"## Metrics\n\n{_metrics(report)}",
        f"## Limits\n\n{_limits(dataset, report)}",
        f"## Samples\n\nThe first images by their index, below `CELEBDIT_STORE`: `{report.grid_uri}`." + _contact(report),
        f"## Recipe\n\n```json\n{json.dumps(checkpoint.recipe.model_dump(mode='json'), indent=2, sort_keys=True)}\n```",
        f"### Protocol `{report.protocol.name}`\n\n```json\n{json.dumps(protocol, indent=2, sort_keys=True)}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def version_description(card: str, image: str) -> str:
    """Return `card` for the version's page in MLflow: first the score, which the table of versions shows, then `image`; no title."""
    _, score, rest = card.split("\n\n", 2)
    return f"{score}\n\n![samples]({image})\n\n{rest}"


def _score(report: EvaluationReport) -> str:
    key, metrics = report.headline, report.metrics
    return score_sentence(key, metrics[key], metrics.get(f"{key}_std"), metrics.get(f"{key}_of_noise"))


def _summary(checkpoint: CheckpointManifest, dataset: DatasetManifest) -> str:
    network = checkpoint.recipe.network
    return (
        "An unconditional diffusion model: a convolutional encoder-decoder around a Diffusion Transformer "
        f"({network.depth} deep, {network.width} wide), "
        f"trained on pixels without a separate autoencoder on {dataset.name}.{_distillation_text(checkpoint)}\n\n"
        f"Run `{checkpoint.run_key}`, step {checkpoint.step}, checkpoint `{checkpoint.digest}`."
    )


def _distillation_text(checkpoint: CheckpointManifest) -> str:
    distill, teacher = checkpoint.recipe.distill, checkpoint.recipe.teacher
    if distill is None or teacher is None:
        return ""
    return (
        f" It is a student of {distill.steps} sampling steps, distilled by moment matching from run `{teacher.run_key}`, "
        f"step {teacher.step}, EMA {teacher.ema} (sha256 `{teacher.weights_sha256}`). "
        "It is served with its own sampler and steps alone: with others its images are worse."
    )


def _data(dataset: DatasetManifest) -> str:
    rejected = sum(dataset.rejected.values())
    return (
        f"{dataset.name}: {dataset.num_images} images for training, {dataset.num_held_out} held out, {rejected} rejected; "
        f"digest `{dataset.digest}`, from `{dataset.source}`.\n\n"
        f"Licence of the data: **{dataset.licence}**; accepted by: {dataset.licence_accepted_by}. "
        "It applies to uses of this model as it applies to uses of the data."
    )


def _metrics(report: EvaluationReport) -> str:
    rows = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for key, value, interval in report.metric_rows():
        rows.append(f"| `{key}` | {value:.5g} | {'' if interval is None else interval.text()} |")
    return "\n".join(rows)


def _contact(report: EvaluationReport) -> str:
    return "" if report.contact_uri is None else f" The samples nearest to a training image, each beside it: `{report.contact_uri}`."


def _limits(dataset: DatasetManifest, report: EvaluationReport) -> str:
    name = report.protocol.name
    comparable = (
        "The metrics were measured under a custom protocol and cannot be compared with published ones."
        if name == "custom"
        else f"The metrics follow the protocol `{name}`; compare them only with metrics of the same protocol."
    )
    return (
        f"- It reproduces its training data: the {dataset.num_images} images of {dataset.name}, with their selection and its biases. Its "
        "images do not show real persons and must not be used to impersonate one.\n"
        "- It is unconditional: the content of an image cannot be chosen, only changed with another seed.\n"
        f"- {comparable}\n"
        "- The nearest-neighbour check finds copies in the space of one extractor's features; it cannot show that there are none."
    )


def _usage(name: str, checkpoint: CheckpointManifest, sampling: SamplingConfig) -> str:
    query = json.dumps(
        {"dataframe_records": [{"seed": 0}], "params": {"num_steps": sampling.num_steps, "sampler": sampling.sampler}}, sort_keys=True
    )
    samplers = "\n".join(f"- `{name}`: {spec.summary}" for name, spec in SAMPLERS.items())
    parameters = (
        f"Parameters: `num_steps` and `sampler`, one of\n\n{samplers}\n\n"
        if checkpoint.recipe.distill is None
        else f"`num_steps` and `sampler` are {sampling.num_steps} and `{sampling.sampler}`: others are refused.\n\n"
    )
    return (
        "`@champion` is the version that was promoted last; `/3` in its place is version 3.\n\n"
        "```sh\n"
        f"celebdit sample models:/{name}@champion --count 16 --out faces.png\n"
        f"celebdit serve {name}@champion --port 8080\n"
        "curl -s 'localhost:8080/image.png?seed=0' -o face.png\n"
        f"curl -s localhost:8080/invocations -H 'Content-Type: application/json' -d '{query}'\n"
        "```\n\n"
        f"Input: one row per image with an integer `seed`. {parameters}"
        "Output: for each row its `seed` and `image`, a PNG (base64 over HTTP). The same seed gives the same image."
    )
