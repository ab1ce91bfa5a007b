"""Tags of a model version: stored names, and versions of earlier releases or made elsewhere."""

import pytest

from components.registry.tags import VersionTags, flat_tags

STORED = {
    "checkpoint.digest": "c" * 64,
    "weights.ema": "0.1",
    "run_key": "0123456789abcdef",
    "checkpoint.uri": "s3://bucket/checkpoint",
    "checkpoint.step": "7",
    "dataset.digest": "d" * 64,
    "dataset.licence": "CC0-1.0",
    "protocol.digest": "a" * 64,
    "protocol.name": "custom",
    "evaluation.uri": "s3://bucket/evaluation",
    "gate.decision": "pass",
    "serving.trial": "passed",
    "eval/fid_50k": "12.5",
    "eval/fid_50k_std": "0.001",
}


def test_the_tags_of_a_stored_version_are_read_and_written_unchanged() -> None:
    tags = VersionTags.from_mlflow(STORED)
    assert tags.to_mlflow() == STORED
    assert tags.checkpoint_step == 7
    assert tags.metrics == {"eval/fid_50k": 12.5, "eval/fid_50k_std": 0.001}


@pytest.mark.parametrize("extra", [{"source": "imported", "source.sha256": "e" * 64}, {"source": "recombined", "ema.sigma_rel": "0.07"}])
def test_versions_that_the_pipeline_has_not_evaluated_keep_their_source(extra: dict[str, str]) -> None:
    stored = {"checkpoint.digest": "c" * 64, "weights.ema": "none", "serving.trial": "passed", **extra}
    tags = VersionTags.from_mlflow(stored)
    assert tags.to_mlflow() == stored
    assert tags.gate is None


def test_a_version_made_elsewhere_has_no_values() -> None:
    assert VersionTags.from_mlflow({"team": "vision", "checkpoint.step": "last", "eval/fid_50k": "good"}) == VersionTags()
    assert VersionTags.from_mlflow({"checkpoint.step": "9" * 5000}) == VersionTags()
    assert VersionTags().to_mlflow() == {}


def test_weights_are_one_checkpoint_and_one_average() -> None:
    tags = VersionTags.from_mlflow(STORED)
    assert tags.is_of("c" * 64, "0.1")
    assert not tags.is_of("c" * 64, "none")
    assert not tags.is_of("b" * 64, "0.1")
    assert not VersionTags().is_of("c" * 64, "0.1")


EVALUATED = {**STORED, "manifest.digest": "b" * 64, **{f"eval/metric_{number}": str(number / 7) for number in range(30)}}
IMPORTED = {name: STORED[name] for name in ("checkpoint.digest", "weights.ema", "run_key", "checkpoint.uri", "dataset.licence")} | {
    "manifest.digest": "b" * 64,
    "serving.trial": "passed",
}


@pytest.mark.parametrize(
    "stored",
    [
        EVALUATED,
        {**IMPORTED, "source": "imported", "source.sha256": "e" * 64},
        {**IMPORTED, "source": "recombined", "ema.sigma_rel": "0.07"},
        {**{name: value for name, value in EVALUATED.items() if name != "serving.trial"}, "files.lost": "it lacks a file"},
    ],
)
def test_a_version_shows_at_most_eight_tags_and_none_of_its_values_is_lost(stored: dict[str, str]) -> None:
    tags = VersionTags.from_mlflow(stored)
    written = tags.to_version()
    assert len(written) <= 8
    assert VersionTags.from_mlflow(written) == tags
    assert flat_tags({**written, "team": "vision"}) == {**stored, "team": "vision"}


def test_a_tag_of_its_own_counts_before_one_in_details() -> None:
    tags = {"details": '{"run_key": "old", "checkpoint.digest": "old", "eval/fid_50k": "1.5"}', "run_key": "new"}
    assert (VersionTags.from_mlflow(tags).run_key, VersionTags.from_mlflow(tags).checkpoint_digest) == ("new", "old")


@pytest.mark.parametrize("details", ["", "no JSON", "[1]", "7", '{"run_key": 7}', "[" * 100_000, '{"eval/fid_50k": ["x"]}'])
def test_details_that_somebody_else_wrote_are_left_alone(details: str) -> None:
    assert VersionTags.from_mlflow({"details": details, "gate.decision": "pass"}) == VersionTags(gate="pass")
