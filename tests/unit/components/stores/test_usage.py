"""What the objects of a store belong to, by their keys alone."""

from datetime import UTC, datetime

import pytest

from components.storage import StoreUri
from components.storage.uri import StoredObject
from components.stores.layout import StoreLayout
from components.stores.usage import FOREIGN, usage_of

RUN, OTHER = "0123456789abcdef", "fedcba9876543210"
DIGEST, OTHER_DIGEST = "d" * 64, "e" * 64
ROOT = StoreUri("bucket", "faces/main")
LAYOUT = StoreLayout(ROOT)


def stored(key: str, size_bytes: int = 1, *, day: int | None = None, root: StoreUri = ROOT) -> StoredObject:
    key = f"{root.key}/{key}".lstrip("/")
    return StoredObject(StoreUri(root.bucket, key), size_bytes, modified=None if day is None else datetime(2026, 1, day, tzinfo=UTC))


@pytest.mark.parametrize("root", [ROOT, StoreUri("bucket", "")])
def test_a_run_is_counted_by_its_parts_with_the_digests_of_its_pages(root: StoreUri) -> None:
    keys = {
        f"runs/{RUN}/checkpoints/step-000000009/a/weights.safetensors": 100,
        f"runs/{RUN}/checkpoints/step-000000009/a/COMMIT.json": 1,
        f"runs/{RUN}/samples/s/images-00000000-000008.npy": 20,
        f"runs/{RUN}/evaluations/e/report.json": 3,
        f"checksums/runs/{RUN}/evaluations/e.json": 4,
        f"runs/{RUN}/attempts/a/spec.json": 5,
        f"runs/{OTHER}/snapshots/step-000000009/a/ema-0.1.safetensors": 7,
    }
    usage = usage_of([stored(key, size, root=root) for key, size in keys.items()], root)
    assert {key: run.size_bytes for key, run in usage.runs.items()} == {RUN: 133, OTHER: 7}
    parts = {name: part.size_bytes for name, part in usage.runs[RUN].parts.items()}
    assert parts == {"checkpoints": 101, "samples": 20, "evaluations": 7, "attempts": 5}
    assert not usage.others
    assert usage.size_bytes == sum(keys.values())


def test_a_dataset_has_the_features_that_were_computed_of_it() -> None:
    """Their keys have half of its digest; the features of another dataset stay with the rest."""
    layout = LAYOUT.reference(DIGEST[:32], "inception", "none")
    keys = [
        f"datasets/faces/{DIGEST}/shard-00000.tar",
        f"checksums/datasets/faces/{DIGEST}.json",
        LAYOUT.key_of(layout / "moments.npy"),
        f"references/{OTHER_DIGEST[:32]}/inception/none/moments.npy",
        "datasets/faces/requests/1.json",
    ]
    usage = usage_of([stored(key) for key in keys], ROOT)
    assert {name: len(dataset.objects) for name, dataset in usage.datasets.items()} == {("faces", DIGEST): 3}
    assert {kind: len(other.objects) for kind, other in usage.others.items()} == {"references": 1, "requests": 1}


def test_features_of_a_dataset_with_two_names_are_counted_once() -> None:
    keys = [f"datasets/{name}/{DIGEST}/dataset.json" for name in ("b", "a")] + [f"references/{DIGEST[:32]}/x/y/moments.npy"]
    usage = usage_of([stored(key) for key in keys], ROOT)
    assert {name: dataset.size_bytes for name, dataset in usage.datasets.items()} == {("a", DIGEST): 2, ("b", DIGEST): 1}


@pytest.mark.parametrize(
    "key",
    [
        f"runs/{RUN}",
        f"runs/{RUN}/notes.txt",
        f"runs/{RUN.upper()}/checkpoints/a",
        f"runs/{RUN}0/checkpoints/a",
        "runs/../checkpoints/a",
        f"runs/{RUN}/samples/",
        f"runs/{RUN}/samples//a",
        f"runs/{RUN}/samples/../../a",
        f"datasets/two words/{DIGEST}/dataset.json",
        f"datasets/../{DIGEST}/dataset.json",
        f"datasets/{DIGEST}/dataset.json",
        "datasets/faces/short/dataset.json",
        f"checksums/runs/{RUN}",
        "quarantine",
        "mlflow/1/artifacts/model.pkl",
        "",
    ],
)
def test_what_has_no_place_in_the_layout_is_foreign(key: str) -> None:
    usage = usage_of([stored(key)], ROOT)
    assert (len(usage.runs), len(usage.datasets)) == (0, 0)
    assert sum(len(other.objects) for other in usage.others.values()) == 1
    assert set(usage.others) <= {FOREIGN, "checksums"}


def test_the_newest_object_says_when_something_was_written() -> None:
    run = usage_of([stored(f"runs/{RUN}/samples/s/{day}.npy", day=day) for day in (3, 9, 5)], ROOT).runs[RUN]
    assert run.written == datetime(2026, 1, 9, tzinfo=UTC)
    assert usage_of([stored(f"runs/{RUN}/samples/s/1.npy")], ROOT).runs[RUN].written is None
