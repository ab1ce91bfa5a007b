"""`celebdit sample --guide`: images drawn under the guidance of weaker weights."""

from dataclasses import replace
from pathlib import Path

import pytest
from celebdit_testing.command import Finished, celebdit_here
from celebdit_testing.registered import registry_context
from celebdit_testing.trained import commit_checkpoint

from components.runtime.context import StepContext
from components.stores.checkpoints import CheckpointStore
from model.checkpoint import publish, read
from pipeline.services import Endpoints, Services


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path)


@pytest.mark.fault
@pytest.mark.slow
def test_samples_can_be_guided_by_a_snapshot_or_a_smaller_network(
    context: StepContext, embedded: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = commit_checkpoint(context, tmp_path / "stored", seed=11)
    smaller = commit_checkpoint(context, tmp_path / "stored", seed=12, width=16)
    early = commit_checkpoint(context, tmp_path, seed=13)
    snapshots = CheckpointStore(context.store, context.layout.run(checkpoint.run_key).snapshots)
    state = read(next((tmp_path / early.run_key).glob("step-*")))
    snapshots.upload(publish(replace(state, step=3), tmp_path / "early"), "attempt-1")
    source = checkpoint.run_key
    local = str(next((tmp_path / "stored" / source).glob("step-*")))

    def draw(name: str, source: str, *arguments: str) -> Finished:
        options = ("--count", "2", "--steps", "2", "--sampler", "euler", "--batch", "2", "--json")
        target = str(tmp_path / f"{name}.png")
        return celebdit_here("sample", source, *options, "--out", target, *arguments, home=embedded.home, capture=capsys)

    ways = {
        "alone": (source,),
        "one": (source, "--guide", f"{source}@3", "--guidance", "1"),
        "snapshot": (source, "--guide", f"{source}@3"),
        "snapshot of a folder": (local, "--guide", f"{source}@3", "--guidance", "1.5"),
        "far": (source, "--guide", f"{source}@3", "--guidance", "4"),
        "smaller": (f"{source}@7", "--guide", smaller.uri, "--guide-ema", "none"),
        "unheard": (source, "--guide", smaller.uri, "--guidance-interval", "0.6", "0.9"),
    }
    drawn = {name: draw(name, *arguments) for name, arguments in ways.items()}
    assert {name: done.code for name, done in drawn.items()} == dict.fromkeys(ways, 0), [done.err for done in drawn.values()]
    images = {name: (tmp_path / f"{name}.png").read_bytes() for name in ways}
    assert images["one"] == images["unheard"] == images["alone"]
    assert images["snapshot"] == images["snapshot of a folder"]
    assert len({images[name] for name in ("alone", "snapshot", "far", "smaller")}) == 4
    assert drawn["alone"].json["guidance"] is None
    guidance = drawn["smaller"].json["guidance"]
    assert (guidance["checkpoint_digest"], guidance["ema"], guidance["weight"], guidance["interval"]) == (
        smaller.digest,
        "none",
        1.5,
        [0.0, 1.0],
    )
    assert drawn["snapshot"].json["guidance"]["guide"].endswith(f"runs/{source}/snapshots/step-000000003/attempt-1")
    assert f"guided by {context.layout.locate(smaller.uri)}, EMA none, weight 1.5" in drawn["smaller"].err

    other_side = commit_checkpoint(context, tmp_path / "stored", seed=14, image_px=32)
    for arguments, message in (
        (("--guide", f"{source}@4"), f"run '{source}' has no checkpoint or snapshot of step 4"),
        (("--guide", source), "SOURCE and --guide are the same weights"),
        (("--guide", other_side.uri), "the guide has image_px 32, the model that it guides has 16"),
        (("--guide", f"{source}@3", "--guidance", "0.5"), "--guidance 0.5 must lie between 1 and 20"),
        (("--guide", f"{source}@3", "--guidance", "nan"), "--guidance nan must lie between 1 and 20"),
        (("--guide", f"{source}@3", "--guidance-interval", "0.7", "0.7"), "must be two increasing flow times between 0 and 1"),
        (("--guide", " "), "SOURCE is empty"),
        (("--guidance", "2"), "--guidance needs --guide"),
    ):
        wrong = draw("wrong", source, *arguments)
        assert (wrong.code, message in wrong.err, "Traceback" in wrong.err) == (2, True, False), wrong.err
    assert not (tmp_path / "wrong.png").exists()
