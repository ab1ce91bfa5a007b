"""The object store's layout: the keys it builds, and the documented tree."""

import inspect
import re
from pathlib import Path

import pytest

from components.errors import BadInput
from components.storage import StoreUri
from components.stores import layout
from components.stores.deletion import is_written_last
from components.stores.layout import RunLayout, StoreLayout

LAYOUT = StoreLayout(StoreUri("bucket", "prefix"))
KEY = "0123456789abcdef"
REPOSITORY = Path(__file__).parents[4]


def documented_tree() -> str:
    """Return the tree in the module's docstring, without its indentation."""
    lines = inspect.cleandoc(layout.__doc__ or "").splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() == "STORE/")
    indented = lines[start : next(number for number in range(start, len(lines)) if not lines[number])]
    return "\n".join(line.removeprefix("    ") for line in indented)


def test_locations_have_the_keys_that_stored_runs_have() -> None:
    run = LAYOUT.run(KEY)
    assert {name: getattr(run, name).key for name in vars(RunLayout) if isinstance(vars(RunLayout)[name], property)} == {
        name: f"prefix/runs/{KEY}/{name}"
        for name in ("checkpoints", "snapshots", "averages", "samples", "evaluations", "attempts", "journal", "leases")
    }
    assert run.prefix.key == f"prefix/runs/{KEY}"
    assert LAYOUT.runs.key == "prefix/runs"
    assert LAYOUT.dataset("faces").key == "prefix/datasets/faces"
    assert LAYOUT.requests("faces").key == "prefix/datasets/faces/requests"
    assert LAYOUT.reference("d" * 32, "random-conv-1", "t" * 16).key == f"prefix/references/{'d' * 32}/random-conv-1/{'t' * 16}"
    assert LAYOUT.version_records.key == "prefix/versions"
    assert LAYOUT.sweep("d" * 64).key == f"prefix/sweeps/{'d' * 64}/records"
    assert LAYOUT.speed("d" * 64).key == f"prefix/speeds/{'d' * 64}.json"
    assert LAYOUT.model("celebdit", "3", "d" * 64).key == f"prefix/models/celebdit/3-{'d' * 16}"


def test_a_name_cannot_leave_its_prefix() -> None:
    with pytest.raises(BadInput, match="cannot be part of an object key"):
        LAYOUT.run("../other")


def test_every_location_of_a_run_is_in_the_documented_tree() -> None:
    below_runs = documented_tree().split("runs/<run key>/\n")[1]
    named = set(re.findall(r"^ +([a-z]+)/", below_runs, re.MULTILINE))
    assert named == {name for name, value in vars(RunLayout).items() if isinstance(value, property)}


def test_the_data_guide_shows_the_documented_tree() -> None:
    blocks = re.findall(r"```text\n(.*?)\n```", (REPOSITORY / "docs" / "data.md").read_text(), re.DOTALL)
    assert documented_tree() in blocks


def test_what_is_written_last_by_the_tree_is_deleted_first() -> None:
    last = re.findall(r"(\S+) last\b", documented_tree())
    assert len(last) >= 5
    for name in last:
        assert is_written_last(re.sub("<[^>]*>", "00000008", name)), name
    for name in ("weights.safetensors", "state.json", "MANIFEST.json", "images-00000000-000008.npy", "spec.json", "SCORE-fid.json"):
        assert not is_written_last(name), name
