"""Relations between the sections of a configuration, and with its data: what cannot be evaluated is refused before a run starts."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from components.errors import BadInput
from pipeline.config import load_config
from pipeline.source_check import check_source


def test_relations_are_checked_between_the_sections_that_are_valid() -> None:
    with pytest.raises(BadInput) as raised:
        load_config("smoke", ["data.name=X", "sampling.ema=other", "sampling.eta=0.5", "evaluation.champion=false"])
    named, ema, champion, eta = raised.value.message.split("\n")
    assert named.startswith("data.name: must look like celebahq256 (given: 'X')")
    assert ema.startswith("sampling.ema 'other' is not tracked")
    assert champion.startswith("gate.no_worse_than_champion compares with the champion")
    assert eta == "sampling.eta 0.5 belongs to sampling.sampler 'ddim', and sampling.sampler is 'euler': leave it out"


@pytest.mark.parametrize("bound", ["at_most", "at_least"])
def test_a_bound_on_a_metric_that_will_not_be_measured_is_refused(bound: str) -> None:
    with pytest.raises(BadInput, match=rf"gate.{bound}: 'eval/fd_randconv_1k' will not be measured: .*eval/fd_randconv_500,"):
        load_config(
            "demo", ["evaluation.num_images=500", "gate.at_most={}", "gate.at_least={}", f"gate.{bound}={{'eval/fd_randconv_1k'=4.0}}"]
        )
    load_config(
        "demo", ["evaluation.num_images=500", "gate.at_most={}", "gate.at_least={}", f"gate.{bound}={{'eval/fd_randconv_500'=4.0}}"]
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("gate.at_most={'eval/memorised_share_16'=0.1}", "memorised_share_16' will not be measured"),
        ("gate.at_least={'eval/memorised_share_16'=0.1}", "memorised_share_16' will not be measured"),
        ("gate.at_most={'eval/fd_randconv_16'=3.0}", None),
        ("evaluation.num_images=2", None),
        ("evaluation.reference_split=held_out", "'held_out' has no images while data.held_out is 0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_starts(override: str, problem: str | None) -> None:
    overrides = ["evaluation.memorisation=false", "gate.at_most={}", override]
    if problem is None:
        load_config("smoke", overrides)
        return
    with pytest.raises(BadInput, match=problem):
        load_config("smoke", overrides)


def test_fewer_images_than_a_metric_needs_are_refused() -> None:
    inception = [
        "evaluation.extractor=inception-v3-compat",
        "evaluation.weights=w.pth",
        f"evaluation.weights_sha256={'a' * 64}",
        "gate.at_most={}",
    ]
    with pytest.raises(BadInput, match=r"evaluation\.num_reference 3 is too few for evaluation\.metrics precision_recall: use at least 4"):
        load_config("smoke", [*inception, "evaluation.num_reference=3"])
    load_config("smoke", [*inception, "evaluation.num_reference=4"])


@pytest.mark.parametrize("source", ["synthetic://?count=48", "folder"])
def test_scores_of_more_images_than_the_source_has_are_refused_before_anything_starts(source: str, tmp_path: Path) -> None:
    for index in range(48):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    settings = [f"data.source={tmp_path if source == 'folder' else source}", "training.score_every_steps=4"]
    check_source(load_config("smoke", [*settings, "training.score_images=48"]))
    check_source(load_config("smoke", settings[:1]))
    for stray, number in (([], 2000), (["training.score_images=49"], 49)):
        with pytest.raises(BadInput, match=rf"training\.score_images {number}: samples are compared .*, and there are 48") as raised:
            check_source(load_config("smoke", [*settings, *stray]))
        assert "training.score_images=48 or less" in str(raised.value.hint)


@pytest.mark.parametrize(("source", "count"), [("synthetic://?count=1", 1), ("folder", 1), ("folder", 0), ("zip", 1)])
def test_a_source_of_one_image_is_refused_before_anything_starts(source: str, count: int, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{index}.png")
    if source == "zip":
        shutil.make_archive(str(tmp_path / "images"), "zip", folder)
    name = {"folder": str(folder), "zip": str(tmp_path / "images.zip")}.get(source, source)
    with pytest.raises(BadInput, match=r"contains no images" if count == 0 else r"has 1 file, .* needs at least 2 images"):
        check_source(load_config("smoke", [f"data.source={name}"]))


STUDENT = ["distill.teacher=53e830b04a95c9d2", "distill.steps=8", "sampling.sampler=ddpm", "sampling.num_steps=8"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("sampling.num_steps=4", "sampling.num_steps 4 is not how a student of distill.steps 8 draws images: set sampling.num_steps=8"),
        (
            "sampling.sampler=heun",
            "sampling.sampler 'heun' is not how a student of distill.steps 8 draws images: set sampling.sampler=ddpm",
        ),
        ("sampling.time_shift=2.0", "sampling.time_shift 2.0 is not how a student"),
        ("diffusion.path=vp_cosine", "distill.teacher needs diffusion.path 'rectified_flow', not 'vp_cosine'"),
        ("distill.teacher=demo", "distill.teacher: must look like 53e830b04a95c9d2 or 53e830b04a95c9d2@900"),
        ("distill.steps=0", "distill.steps"),
    ],
)
def test_a_student_is_sampled_as_it_is_trained(change: str, problem: str) -> None:
    config = load_config("demo", STUDENT)
    assert (config.recipe.distill, config.recipe.teacher) == (config.distill, None), "the teacher is looked up in the store"
    with pytest.raises(BadInput, match=re.escape(problem)):
        load_config("demo", [*STUDENT, change])


def test_without_a_teacher_the_section_is_not_in_a_configuration() -> None:
    config = load_config("demo")
    assert config.recipe.distill is None
    assert config.sections()["distill"] == "null"
    assert b"distill" not in config.canonical()
    assert "distill" not in config.toml()
    with pytest.raises(BadInput, match=r"distill\.steps 8 belongs to distill\.teacher set, and distill\.teacher is unset"):
        load_config("demo", ["distill.steps=8"])
