"""The model card: what a version is, made from what, how good under which protocol, where it fails, and how to use it.

Promises: a pure function of the manifests; markdown that reads well in the MLflow UI, on a terminal and on a model hub. Every number in it
stands beside its protocol.
"""

import json

from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision
from model.config import SamplingConfig


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
        _what(checkpoint, dataset),
        f"## Data and licence\n\n{_data(dataset)}",
        f"## Recipe\n\n```json\n{json.dumps(checkpoint.recipe.model_dump(mode='json'), indent=2, sort_keys=True)}\n```",
        f"## Numbers\n\n{_numbers(report)}\n\nGate: **{gate.decision}** ({'; '.join(gate.reasons)}).",
        f"### Protocol `{report.protocol.name}`\n\n```json\n{json.dumps(protocol, indent=2, sort_keys=True)}\n```",
        f"## Samples\n\nThe first images by their index: `{report.grid_uri}`." + _contact(report),
        f"## Limits\n\n{_limits(dataset, report)}",
        f"## How to use it\n\n{_usage(name, sampling)}",
    ]
    return "\n\n".join(sections) + "\n"


def _what(checkpoint: CheckpointManifest, dataset: DatasetManifest) -> str:
    network = checkpoint.recipe.network
    return (
        "An unconditional diffusion model: a convolutional encoder-decoder around a Diffusion Transformer "
        f"({network.depth} deep, {network.width} wide), "
        f"trained on pixels without a separate autoencoder on {dataset.name}.\n\n"
        f"Run `{checkpoint.run_key}`, step {checkpoint.step}, checkpoint `{checkpoint.digest}`."
    )


def _data(dataset: DatasetManifest) -> str:
    rejected = sum(dataset.rejected.values())
    return (
        f"{dataset.name}: {dataset.num_images} images for training, {dataset.num_held_out} held out, {rejected} rejected; "
        f"digest `{dataset.digest}`, from `{dataset.source}`.\n\n"
        f"Licence of the data: **{dataset.licence}**; accepted by: {dataset.licence_accepted_by}. "
        "Whoever uses this model is bound by it as whoever uses the data."
    )


def _numbers(report: EvaluationReport) -> str:
    rows = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for key, value, interval in report.metric_rows():
        rows.append(f"| `{key}` | {value:.5g} | {'' if interval is None else interval.text()} |")
    return "\n".join(rows)


def _contact(report: EvaluationReport) -> str:
    return "" if report.contact_uri is None else f" The samples nearest to a training image, each beside it: `{report.contact_uri}`."


def _limits(dataset: DatasetManifest, report: EvaluationReport) -> str:
    name = report.protocol.name
    comparable = (
        "The numbers were made under a protocol of this run's own and cannot be put beside published ones."
        if name == "custom"
        else f"The numbers follow the protocol `{name}`; put them only beside numbers of the same one."
    )
    return (
        f"- It draws what it saw: the {dataset.num_images} images of {dataset.name}, with their selection and its biases. It says nothing "
        "about real persons and must not be used to pass for one.\n"
        "- It is unconditional: what is drawn cannot be asked for, only drawn again with another seed.\n"
        f"- {comparable}\n"
        "- The nearest-neighbour check finds copies in the space of one extractor's features; it cannot show that there are none."
    )


def _usage(name: str, sampling: SamplingConfig) -> str:
    question = json.dumps(
        {"dataframe_records": [{"seed": 0}], "params": {"num_steps": sampling.num_steps, "sampler": sampling.sampler}}, sort_keys=True
    )
    return (
        "```sh\n"
        f"celebdit sample models:/{name}@champion --count 16 --out faces.png\n"
        f"celebdit serve {name}@champion --port 8080\n"
        f"curl -s localhost:8080/invocations -H 'Content-Type: application/json' -d '{question}'\n"
        "```\n\n"
        "Input: one row per image with an integer `seed`. Parameters: `num_steps`, `sampler` (ddpm, ddim, euler, heun, dpmpp_2m or unipc). "
        "Output: for each row its `seed` and `image`, a PNG (base64 over HTTP). The same seed gives the same image."
    )
