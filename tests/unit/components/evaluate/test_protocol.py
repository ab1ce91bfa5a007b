"""Protocols: what they are called, what is in their digest, and evaluations that cannot work."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from celebdit_testing.recipes import dataset_manifest, faces, tiny_recipe, trained_with
from PIL import Image

from components.errors import BadInput, DataRefused
from components.evaluate.codec import flipped_at_random, through_codec
from components.evaluate.config import EvaluationConfig
from components.evaluate.reference import reference_uri
from components.evaluate.spec import EvaluateSpec
from components.manifests import CheckpointManifest, EvaluationReport
from components.resources import ResourcesConfig
from components.runtime.context import read_section
from components.storage import StoreUri
from components.stores.layout import StoreLayout
from model.config import SamplingConfig
from pipeline.config import load_config
from pipeline.config_files import preset_names

WEIGHTS = {"weights": "s3://bucket/inception.pth", "weights_sha256": "1" * 64}
LAYOUT = StoreLayout(StoreUri("bucket", "root"))
STORED_REPORT = Path(__file__).parent / "golden" / "evaluation_report.json"
"""Of a `smoke` run of version 0.1, before `EvaluationProtocol` was a type."""


def config(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(**{**WEIGHTS, **changes})


@pytest.mark.parametrize(
    ("own", "other", "text"),
    [
        ({}, {"ema": "none", "seed": 3}, None),
        ({"num_steps": 1}, {}, "heun, 1 step"),
        ({}, {"sampler": "ddpm", "num_steps": 4}, "heun, 32 steps"),
        ({"time_shift": 3.0}, {}, "heun, 32 steps, time_shift 3.0"),
        ({"sampler": "ddpm", "num_steps": 4}, {"sampler": "ddim", "eta": 0.5}, "ddpm, 4 steps"),
        ({"sampler": "ddim", "spacing": "leading", "eta": 0.5}, {"clip_x": False}, "ddim, 32 steps, spacing leading, eta 0.5, clip_x True"),
    ],
)
def test_of_two_ways_to_draw_what_differs_is_named(own: dict[str, Any], other: dict[str, Any], text: str | None) -> None:
    assert spec(config(), sampling=own).how_drawn_beside(SamplingConfig(**other)) == text


def spec(evaluation: EvaluationConfig, *, sampling: dict[str, Any] | None = None, **dataset: Any) -> EvaluateSpec:
    checkpoint = CheckpointManifest(
        run_key="k", uri="s3://bucket/c", digest="c" * 64, step=7, dataset_digest="d" * 64, recipe=trained_with(tiny_recipe())
    )
    return EvaluateSpec(
        checkpoint=checkpoint,
        model=checkpoint.recipe.model_spec,
        dataset=dataset_manifest(**{"num_images": 30_000, **dataset}),
        evaluation=evaluation,
        sampling=SamplingConfig(**(sampling or {})),
        resources=ResourcesConfig(),
    )


@pytest.mark.parametrize(
    ("name", "num_images", "num_reference", "codec", "flip"),
    [
        ("clean-50k", 50_000, 30_000, "png", False),
        ("rdm-30k", 30_000, 30_000, "png", False),
        ("nvae27k-jpeg", 50_000, 27_000, "jpeg-q75", True),
    ],
)
def test_a_named_protocol_is_stamped_with_all_that_it_fixes(name: str, num_images: int, num_reference: int, codec: str, flip: bool) -> None:
    protocol = spec(config(protocol=name)).protocol
    assert protocol.name == name
    assert (protocol.num_images, protocol.num_reference, protocol.codec, protocol.reference_flip) == (
        num_images,
        num_reference,
        codec,
        flip,
    )
    assert protocol.extractor_sha256 == "1" * 64
    assert protocol.checkpoint_digest == "c" * 64
    for key in ("reference_split", "resize", "extractor", "ema", "dataset_digest"):
        assert getattr(protocol, key) is not None, key
    assert {"sampler", "num_steps", "seed"} <= set(protocol.sampling)


DIGESTS = {
    "celebahq256-b": "da3397ddfaf35d1da89029f95eb215bfeac95470158988fa873cdd1a22a9ba81",
    "celebahq256-l": "da3397ddfaf35d1da89029f95eb215bfeac95470158988fa873cdd1a22a9ba81",
    "celebahq256-s": "da3397ddfaf35d1da89029f95eb215bfeac95470158988fa873cdd1a22a9ba81",
    "celebahq256-xl": "da3397ddfaf35d1da89029f95eb215bfeac95470158988fa873cdd1a22a9ba81",
    "demo": "9b248bf5dfd460febd558ad65676132f5b1f9c2d802528a97eb8b459750ed3f4",
    "seed": "2959162f675f6bd8f1c1da2da880a28a0b8b56de52dcf4f92dee277710ede6e5",
    "smoke": "1d652eed6b4fcac59ccf0d2566a127cdd879a439cf03927e1316bf593fde5f42",
}
"""Each preset's protocol on 27,000 + 3,000 images of its size, as of version 0.1: stored reports are found by it."""


@pytest.mark.parametrize("preset", preset_names())
def test_the_protocol_digest_of_a_preset_is_that_of_stored_reports(preset: str) -> None:
    run_config = load_config(preset)
    counts = {"num_images": 27_000, "num_held_out": 3_000, "image_px": run_config.data.image_px}
    assert spec(run_config.evaluation, sampling=run_config.sampling.model_dump(), **counts).protocol.digest == DIGESTS[preset]


@pytest.mark.parametrize(
    ("changes", "digest", "references"),
    [
        ({}, "24a14e1f108fc26ed9b19e345e5489da26360613bbfd941aa1d428eed8dd4b9b", "a2b53d308f59aab5"),
        ({"protocol": "rdm-30k"}, "edb269d4fb95a40b83a7462bb206a95cd67e63958fc3351934053ad8b8eeef60", "a2b53d308f59aab5"),
        ({"protocol": "nvae27k-jpeg"}, "3d328670f76a6e0ba189dc9a7a22767545555562ce5e99c1f112437924fd3de7", "6d0e8de168726d0e"),
        (
            {"vgg_weights": "v", "vgg_weights_sha256": "3" * 64},
            "da146bffe87739a19b0d6040485e796e5b1fe4a2e7a176851c81a6bd8557c88a",
            "a0acf7a8d36ae284",
        ),
        (
            {"metrics": ("frechet", "inception_score"), "memorisation": False},
            "21658398843803e1ce2fb598bf8d6dc8eb0dba45b94e5195e70f3c9e2c57dbe0",
            "a2b53d308f59aab5",
        ),
        (
            {"metrics": ("frechet",), "num_reference": 900, "weights": None, "weights_sha256": None, "extractor": "random-conv"},
            "f22c433d62ba24e63b1d9d78b45909db2ba8265a99e85bbcc18a8ca3361593db",
            "f526c37ee23ee477",
        ),
    ],
)
def test_protocols_and_reference_keys_are_those_of_stored_evaluations(changes: dict[str, Any], digest: str, references: str) -> None:
    measured = spec(config(**changes), num_images=27_000, num_held_out=3_000)
    assert measured.protocol.digest == digest
    assert reference_uri(measured, LAYOUT).name == references


def test_a_stored_report_is_read_and_written_back_unchanged_but_for_the_address_of_its_store() -> None:
    report = EvaluationReport.parse(STORED_REPORT.read_bytes(), origin="stored")
    assert report.protocol.digest == report.protocol_digest
    assert (report.protocol.name, report.ema, report.protocol.sampling["sampler"]) == ("custom", "0.1", "euler")
    assert report.grid_uri == f"{report.uri}/grid.png"
    stored = STORED_REPORT.read_text()
    assert "s3://celebdit/main/runs/" in stored
    assert json.loads(report.model_dump_json()) == json.loads(stored.replace("s3://celebdit/main/", ""))


def test_a_report_with_a_metric_of_a_later_version_is_read() -> None:
    stored = json.loads(STORED_REPORT.read_bytes())
    del stored["protocol"]["digest"]
    stored["protocol"] |= {"metrics": ["frechet", "later"], "later": {"patches": 4}}
    assert EvaluationReport.parse(json.dumps(stored).encode(), origin="stored").protocol.model_dump()["later"] == {"patches": 4}


@pytest.mark.parametrize("change", [{"num_images": 17}, {"memorisation": {"images": 1, "below": 0.5, "mirrored": True}}])
def test_a_stored_protocol_that_is_not_that_of_its_digest_is_refused(change: dict[str, Any]) -> None:
    stored = json.loads(STORED_REPORT.read_bytes())
    stored["protocol"] |= change
    with pytest.raises(DataRefused, match="the protocol has digest"):
        EvaluationReport.parse(json.dumps(stored).encode(), origin="stored")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": 10_000},
        {"codec": "jpeg"},
        {"reference_flip": True},
        {"reference_split": "train", "num_reference": 29_999},
        {"extractor": "random-conv", "weights": None, "weights_sha256": None},
    ],
)
def test_a_protocol_that_was_changed_loses_its_name(changes: dict[str, Any]) -> None:
    assert spec(config(**changes)).protocol.name == "custom"
    assert spec(config(**changes)).protocol.digest != spec(config()).protocol.digest


def test_a_data_set_with_too_few_images_does_not_get_the_published_name() -> None:
    assert spec(config(protocol="rdm-30k"), num_images=29_000).protocol.name == "custom"
    assert spec(config(protocol="nvae27k-jpeg"), num_images=27_000, num_held_out=3_000).protocol.name == "nvae27k-jpeg"
    assert spec(config(protocol="rdm-30k"), num_images=27_000, num_held_out=3_000).protocol.name == "rdm-30k"


@pytest.mark.parametrize(
    "other",
    [
        {"evaluation": {"weights_sha256": "2" * 64}},
        {"evaluation": {"kid_subsets": 50}},
        {"evaluation": {"bootstrap_replicates": 10}},
        {"evaluation": {"vgg_weights": "v.pth", "vgg_weights_sha256": "3" * 64}},
        {"sampling": {"seed": 1}},
        {"sampling": {"num_steps": 33}},
        {"sampling": {"sampler": "ddim"}},
        {"dataset": {"digest": "f" * 64}},
    ],
)
def test_what_could_move_a_number_is_in_the_digest(other: dict[str, Any]) -> None:
    changed = spec(config(**other.get("evaluation", {})), sampling=other.get("sampling"), **other.get("dataset", {}))
    assert changed.protocol.digest != spec(config()).protocol.digest


@pytest.mark.parametrize("other", [{"batch_images": 8}, {"shard_images": 10}, {"champion": False}, {"weights": "elsewhere.pth"}])
def test_what_moves_nothing_is_not_in_the_digest(other: dict[str, Any]) -> None:
    assert spec(config(**other)).protocol.digest == spec(config()).protocol.digest


def test_another_average_of_the_weights_is_the_same_protocol_but_another_evaluation() -> None:
    one, other = (spec(config(), sampling={"ema": ema}) for ema in ("0.05", "0.1"))
    assert one.protocol.digest == other.protocol.digest
    assert one.report_uri(LAYOUT) != other.report_uri(LAYOUT)
    assert one.samples_uri(LAYOUT) != other.samples_uri(LAYOUT)


def test_protocols_that_draw_alike_share_their_samples() -> None:
    assert spec(config()).samples_uri(LAYOUT) == spec(config(protocol="nvae27k-jpeg")).samples_uri(LAYOUT)
    assert spec(config()).samples_uri(LAYOUT) != spec(config(), sampling={"seed": 1}).samples_uri(LAYOUT)


def test_jpeg_changes_the_pixels_as_pil_does_and_png_does_not() -> None:
    images = torch.from_numpy(faces(3, 32)).permute(0, 3, 1, 2)
    assert torch.equal(through_codec(images, "png"), images)
    stored = through_codec(images, "jpeg")
    buffer = io.BytesIO()
    Image.fromarray(images[1].permute(1, 2, 0).numpy()).save(buffer, "JPEG")
    assert np.array_equal(stored[1].permute(1, 2, 0).numpy(), np.asarray(Image.open(buffer)))
    assert not torch.equal(stored, images)


def test_a_flip_is_decided_by_the_index_of_an_image_alone() -> None:
    images = torch.from_numpy(faces(40, 16)).permute(0, 3, 1, 2)
    all_flipped = flipped_at_random(images, range(40))
    parts = torch.cat([flipped_at_random(images[:7], range(7)), flipped_at_random(images[7:], range(7, 40))])
    assert torch.equal(all_flipped, parts)
    mirrored = [bool(torch.equal(all_flipped[i], images[i].flip(-1)) and not torch.equal(all_flipped[i], images[i])) for i in range(40)]
    assert 8 <= sum(mirrored) <= 32


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "weights-inception-2015-12-05-6726825d.pth"),
        ({"extractor": "dinov2-vit-b-14"}, "extractor 'dinov2-vit-b-14' needs weights"),
        ({"extractor": "dinov2-vit-l-14"}, "dinov2_vitl14_pretrain.pth"),
        ({"extractor": "dinov2-vit-b-14", **WEIGHTS}, "'dinov2-vit-b-14' cannot be used: torch-fidelity loads it from the network alone"),
        ({"extractor": "dinov2-vit-g-14", **WEIGHTS}, "of DINOv2's networks 'dinov2-vit-l-14' can be used"),
        ({"weights": "w.pth"}, "weights and weights_sha256 belong together"),
        ({"vgg_weights": "v", **WEIGHTS}, "vgg_weights and vgg_weights_sha256 belong together"),
        ({**WEIGHTS, "weights_sha256": "abc"}, "weights_sha256"),
        ({**WEIGHTS, "protocol": "clean50k"}, "protocol"),
        ({**WEIGHTS, "metrics": ["kid"]}, "must include 'frechet'"),
        ({**WEIGHTS, "metrics": ["frechet", "fid"]}, "metrics"),
        ({**WEIGHTS, "bootstrap_replicates": 1}, "bootstrap_replicates 1 gives no interval"),
        ({**WEIGHTS, "reference_split": "held_out"}, "memorisation looks for training images"),
        ({**WEIGHTS, "extractor": "../evil"}, "extractor"),
        ({"extractor": "random-conv", "metrics": ["frechet", "inception_score"]}, "needs extractor 'inception-v3-compat'"),
        ({"extractor": "random-conv", **WEIGHTS}, "'random-conv' has none"),
        ({**WEIGHTS, "vgg_weights": "v", "vgg_weights_sha256": "3" * 64, "metrics": ["frechet"]}, "precision_recall"),
    ],
)
def test_an_evaluation_that_cannot_work_is_refused_before_anything_starts(section: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_section(EvaluationConfig, json.dumps(section), name="evaluation")
    assert message in refused.value.message
