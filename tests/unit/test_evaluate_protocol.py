"""Protocols: what they are called, what is in their digest, and evaluations that cannot work."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from celebdit_testing.recipes import dataset_manifest, faces, tiny_recipe, trained_with
from PIL import Image

from components.errors import BadInput
from components.evaluate.codec import flipped_at_random, through_codec
from components.evaluate.config import EvaluationConfig
from components.evaluate.spec import EvaluateSpec
from components.manifests import CheckpointManifest
from components.resources import ResourcesConfig
from components.runtime.context import read_section
from components.storage import StoreUri
from components.stores.layout import StoreLayout
from model.config import SamplingConfig

WEIGHTS = {"weights": "s3://bucket/inception.pth", "weights_sha256": "1" * 64}
LAYOUT = StoreLayout(StoreUri("bucket", "root"))


def config(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(**{**WEIGHTS, **changes})


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
    stamp = spec(config(protocol=name)).stamp()
    assert stamp["name"] == name
    assert (stamp["num_images"], stamp["num_reference"], stamp["codec"], stamp["reference_flip"]) == (
        num_images,
        num_reference,
        codec,
        flip,
    )
    assert stamp["extractor_sha256"] == "1" * 64
    assert stamp["checkpoint_digest"] == "c" * 64
    for key in ("reference_split", "resize", "extractor", "ema", "dataset_digest"):
        assert stamp[key] is not None, key
    assert {"sampler", "num_steps", "seed"} <= set(stamp["sampling"])


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
    assert spec(config(**changes)).protocol_name == "custom"
    assert spec(config(**changes)).protocol_digest != spec(config()).protocol_digest


def test_a_data_set_with_too_few_images_does_not_get_the_published_name() -> None:
    assert spec(config(protocol="rdm-30k"), num_images=29_000).protocol_name == "custom"
    assert spec(config(protocol="nvae27k-jpeg"), num_images=27_000, num_held_out=3_000).protocol_name == "nvae27k-jpeg"
    assert spec(config(protocol="rdm-30k"), num_images=27_000, num_held_out=3_000).protocol_name == "rdm-30k"


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
    assert changed.protocol_digest != spec(config()).protocol_digest


@pytest.mark.parametrize("other", [{"batch_images": 8}, {"shard_images": 10}, {"champion": False}, {"weights": "elsewhere.pth"}])
def test_what_moves_nothing_is_not_in_the_digest(other: dict[str, Any]) -> None:
    assert spec(config(**other)).protocol_digest == spec(config()).protocol_digest


def test_another_average_of_the_weights_is_the_same_protocol_but_another_evaluation() -> None:
    one, other = (spec(config(), sampling={"ema": ema}) for ema in ("0.05", "0.1"))
    assert one.protocol_digest == other.protocol_digest
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
    whole = flipped_at_random(images, range(40))
    parts = torch.cat([flipped_at_random(images[:7], range(7)), flipped_at_random(images[7:], range(7, 40))])
    assert torch.equal(whole, parts)
    mirrored = [bool(torch.equal(whole[i], images[i].flip(-1)) and not torch.equal(whole[i], images[i])) for i in range(40)]
    assert 8 <= sum(mirrored) <= 32


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "weights-inception-2015-12-05-6726825d.pth"),
        ({"extractor": "dinov2-vit-b-14"}, "extractor 'dinov2-vit-b-14' needs weights"),
        ({"weights": "w.pth"}, "weights and weights_sha256 belong together"),
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
def test_an_evaluation_that_cannot_work_is_refused_before_anything_starts(section: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_section(EvaluationConfig, json.dumps(section), name="evaluation")
    assert said in refused.value.message
