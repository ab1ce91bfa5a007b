"""Addresses as older releases stored them, and where they lie in the store of today."""

import pytest

from components.errors import BadInput
from components.manifests import CheckpointReference, GateDecision
from components.storage import StoreUri
from components.store_keys import store_key
from components.stores.layout import StoreLayout

DIGEST = "0123456789abcdef" * 4
RUN = "runs/9de8ceb498c098a0"
CHECKPOINT = f"{RUN}/checkpoints/step-000000060/20261126T152657-27dd00"
DATASET = f"datasets/smoke-faces/{DIGEST}"
OLD_STORES = (
    *("s3://celebdit/main", "s3://bucket", "s3://old.bucket-1/a/b/c"),
    *("s3://bucket/runs", "s3://bucket/datasets/faces", f"s3://bucket/{DATASET}", f"s3://bucket/{CHECKPOINT}"),
)


@pytest.mark.parametrize(
    "key", [DATASET, f"{DATASET}/report.html", f"datasets/datasets/{DIGEST}/report.html", CHECKPOINT, f"{RUN}/averages/a"]
)
@pytest.mark.parametrize("old", OLD_STORES)
def test_an_absolute_address_of_any_store_is_the_key_below_it(old: str, key: str) -> None:
    assert store_key(f"{old}/{key}") == key
    assert store_key(key) == key
    assert StoreLayout(StoreUri.parse("s3://new/prefix")).locate(f"{old}/{key}") == StoreUri("new", f"prefix/{key}")


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/x", f"s3://bucket/runs/KEY/checkpoints/{DIGEST}", "s3://bucket/datasets/faces/requests/a.json", "file:///etc/x"],
)
def test_an_address_that_was_never_stored_is_refused_where_it_is_used(address: str) -> None:
    assert store_key(address) == address
    with pytest.raises(BadInput, match="is not an address in the layout"):
        StoreLayout(StoreUri("new", "")).locate(address)


@pytest.mark.parametrize("key", ["../other", "runs/../../x", "", "/etc/passwd"])
def test_a_key_cannot_leave_the_store(key: str) -> None:
    with pytest.raises(BadInput):
        StoreLayout(StoreUri("new", "prefix")).locate(key)


def test_what_is_written_is_what_is_read() -> None:
    for root in ("s3://new", "s3://new/deep/prefix"):
        layout = StoreLayout(StoreUri.parse(root))
        for location in (layout.dataset("faces") / DIGEST, layout.run("9de8ceb498c098a0").evaluations / "a" / "grid.png"):
            key = layout.key_of(location)
            assert "://" not in key
            assert layout.locate(key) == location


def test_manifests_hold_keys_whatever_they_are_made_from() -> None:
    reference = {"run_key": "9de8ceb498c098a0", "digest": DIGEST, "step": 60, "dataset_digest": DIGEST}
    assert CheckpointReference(uri=f"s3://celebdit/main/{CHECKPOINT}", **reference).uri == CHECKPOINT
    decision = GateDecision(decision="pass", reasons=[], checkpoint_digest=DIGEST, page_uri=f"s3://b/{RUN}/evaluations/x/gate-1.html")
    assert decision.page_uri == f"{RUN}/evaluations/x/gate-1.html"
