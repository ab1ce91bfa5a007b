"""Averages made after training and imported weights become versions that draw, on the embedded servers."""

from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe
from celebdit_testing.steps import notes, step_context

from components.errors import BadInput, DataRefused
from components.registry.client import Registry
from components.runtime.context import StepContext
from components.serving.register_version import register_unevaluated
from components.stores.checkpoints import CheckpointStore
from components.train.checkpointing.ema_snapshots import SnapshotSink
from components.weights.posthoc_ema import compute_posthoc_ema, draw_samples, to_unevaluated
from components.weights.published_checkpoint import import_published, read_published
from model.config import Recipe, SamplingConfig
from model.distributed import World
from model.ema_profiles import AveragedWeights, PowerProfile
from model.interfaces import Outputs
from model.seed_compat import PUBLISHED, SeedCompat
from model.trainer import Placement, Trainer
from pipeline.services import Endpoints

pytestmark = [pytest.mark.fault, pytest.mark.slow]

KEY = "0123456789abcdef"
SMALL = PUBLISHED.model_copy(update={"image_px": 64, "width": 32, "depth": 1, "heads": 4})
STEPS, EVERY = 40, 4
SAMPLING = SamplingConfig(sampler="euler", num_steps=2, ema="none")


def context_of(endpoints: Endpoints, folder: Path) -> StepContext:
    environment = endpoints.environment
    store = f"{environment['CELEBDIT_STORE']}/{folder.name}"
    return step_context(
        "test", folder, store, endpoint=environment["AWS_ENDPOINT_URL"], mlflow_uri=environment["MLFLOW_TRACKING_URI"], run_id=folder.name
    )


class Trained:
    """A training that stored snapshots, and the average of another width that was tracked beside it."""

    def __init__(self, recipe: Recipe, folder: Path, context: StepContext) -> None:
        self.store = CheckpointStore(context.store, context.layout.run(KEY).snapshots)
        sink = SnapshotSink(
            folder / "snapshots",
            self.store,
            attempt="first",
            facts={"identity": recipe.identity("d" * 64)},
            note=context.events.note,
        )
        trainer = Trainer(
            recipe,
            tiny_pack(folder / "pack"),
            Placement(World(), torch.device("cpu")),
            Outputs(MemoryRecorder(), LocalSink(folder / "checkpoints"), sink),
        )
        parameters = list(trainer.network.parameters())
        self.exact = AveragedWeights(PowerProfile(0.07), parameters)
        trainer.run(on_step=lambda step, loss: self.exact.update(parameters, step))
        self.names = [name for name, _ in trainer.network.named_parameters()]


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return context_of(endpoints, tmp_path)


def test_a_run_gives_an_average_of_another_width_and_a_version_that_draws(tmp_path: Path, context: StepContext) -> None:
    recipe = tiny_recipe(total_steps=STEPS, ema_sigma_rel=(0.05, 0.10), ema_snapshot_every_steps=EVERY)
    trained = Trained(recipe, tmp_path / "training", context)
    assert [entry.step for entry in trained.store.list_committed()] == list(range(STEPS, 0, -EVERY))
    average = compute_posthoc_ema(KEY, 0.07, context)
    average_weights = torch.cat([tensor.flatten() for tensor in _weights(average.checkpoint.directory, "ema-0.07", trained.names)])
    exact = torch.cat([tensor.flatten() for tensor in trained.exact.tensors])
    tracked = torch.cat([t.flatten() for t in _weights(_newest(trained, tmp_path), "ema-0.05", trained.names)])
    assert float((average_weights - exact).norm()) < 0.25 * float((tracked - exact).norm()), "far nearer than the nearest tracked one"
    assert average.error < 0.02
    assert draw_samples(average, SAMPLING).shape == (4 * 128, 4 * 128, 3)

    # A snapshot that was damaged in the store is left out, and the others are enough.
    victim = trained.store.list_committed()[3].uri / "ema-0.05.safetensors"
    context.store.put_bytes(victim, b"damaged")
    again = compute_posthoc_ema(KEY, 0.07, context)
    assert again.num_snapshots == average.num_snapshots - 1
    assert any("is corrupt and left out" in note for note in notes(context))

    run_id = context.tracking.step_run("train", run_key=KEY).info.run_id
    number, new = register_unevaluated(to_unevaluated(average, SAMPLING, "CC0"), "averages", run_id, context)
    assert (number, new) == ("1", True)
    assert register_unevaluated(to_unevaluated(average, SAMPLING, "CC0"), "averages", run_id, context) == ("1", False)
    version = Registry(context.tracking, "averages").version("1")
    assert "gate.decision" not in version.tags
    assert version.tags["serving.trial"] == "passed"
    assert version.tags["ema.sigma_rel"] == "0.07"
    assert _drawn("models:/averages/1").startswith(b"\x89PNG")


def test_what_cannot_be_recombined_is_one_clear_line(tmp_path: Path, context: StepContext) -> None:
    with pytest.raises(BadInput, match="there is no run 'nothing'"):
        compute_posthoc_ema("nothing", 0.1, context)
    recipe = tiny_recipe(total_steps=8, ema_sigma_rel=(0.05, 0.10), ema_snapshot_every_steps=4)
    trained = Trained(recipe, tmp_path / "training", context)
    for step, message in ((3, "before the first snapshot"), (6, "there is no snapshot of step 6")):
        with pytest.raises(BadInput, match=message):
            compute_posthoc_ema(KEY, 0.1, context, step=step)
    with pytest.raises(BadInput, match=r"^--sigma-rel 0\.4 must lie between 0 and 0\.2887"):
        compute_posthoc_ema(KEY, 0.4, context)
    for entry in trained.store.list_committed():
        context.store.put_bytes(entry.uri / "ema-0.05.safetensors", b"damaged")
    with pytest.raises(DataRefused, match="all snapshots of run"):
        compute_posthoc_ema(KEY, 0.1, context)


@pytest.mark.parametrize("damage", ["weights", "state"])
def test_the_average_is_that_of_the_newest_snapshot_that_can_be_read(damage: str, tmp_path: Path, context: StepContext) -> None:
    recipe = tiny_recipe(total_steps=12, ema_sigma_rel=(0.05, 0.10), ema_snapshot_every_steps=4)
    trained = Trained(recipe, tmp_path / "training", context)
    newest = trained.store.list_committed()[0]
    copy = context.layout.run(KEY).snapshots / "step-000000012" / "another-attempt"
    for item in context.store.list(newest.uri):
        context.store.put_bytes(copy / item.uri.name, context.store.get_bytes(item.uri))
    damaged, content = {"weights": ("ema-0.05.safetensors", b"damaged"), "state": ("state.json", b"{}")}[damage]
    context.store.put_bytes(newest.uri / damaged, content)
    of_copy = compute_posthoc_ema(KEY, 0.07, context)
    assert (of_copy.step, of_copy.num_snapshots) == (12, 3), "another attempt stored the same step"
    context.store.put_bytes(copy / damaged, content)
    with pytest.raises(BadInput, match=r"there is no snapshot of step 12"):
        compute_posthoc_ema(KEY, 0.07, context, step=12)
    assert compute_posthoc_ema(KEY, 0.07, context).step == 8
    earlier = trained.store.list_committed()[0]
    context.store.put_bytes(earlier.uri / damaged, content)
    assert compute_posthoc_ema(KEY, 0.07, context).step == 4, "a snapshot that is damaged now, not one that was set aside before"


def test_an_imported_checkpoint_becomes_a_version_that_draws_with_its_own_sampler(tmp_path: Path, context: StepContext) -> None:
    torch.manual_seed(0)
    path = tmp_path / "dit_final_12_f_250.pth"
    torch.save(SeedCompat(SMALL).state_dict(), path)
    source = read_published(path, network=SMALL)
    first = import_published(source, "imported", "MIT", context)
    again = import_published(source, "imported", "MIT", context)
    assert (first.version, first.new, again.version, again.new) == ("1", True, "1", False)
    assert first.checkpoint_digest == again.checkpoint_digest
    registry = Registry(context.tracking, "imported")
    version = registry.version("1")
    assert len(registry.versions()) == 1
    assert version.tags["source.sha256"] == source.sha256
    assert version.tags["dataset.licence"] == "MIT"
    assert version.tags["serving.trial"] == "passed"
    assert "Its own sampler is ancestral" in version.description
    model = mlflow.pyfunc.load_model("models:/imported/1")
    defaults = {spec.name: spec.default for spec in model.metadata.signature.params.params}
    assert defaults == {"num_steps": 1000, "sampler": "ddpm"}
    assert _drawn("models:/imported/1").startswith(b"\x89PNG")
    runs = context.tracking.search_runs({"celebdit.pipeline_run": context.settings.run_id})
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_file_of_another_network_is_refused_and_leaves_nothing(tmp_path: Path, context: StepContext) -> None:
    path = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(DataRefused, match=r"is not the published checkpoint: 52 of 52 tensors are missing"):
        read_published(path, network=SMALL)
    assert context.store.list(context.root) == []


def _weights(folder: Path, group: str, names: list[str]) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    stored = load_file(folder / f"{group}.safetensors")
    return [stored[name] for name in names]


def _newest(trained: Trained, folder: Path) -> Path:
    return trained.store.fetch(trained.store.list_committed()[0].uri, folder / "newest").directory


def _drawn(uri: str) -> bytes:
    answer = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"seed": [3]}), params={"num_steps": 2})
    return bytes(answer["image"][0])
