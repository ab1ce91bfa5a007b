"""The speed of a training, from its metric points to the plan that reads it."""

from pathlib import Path

import pytest

from components.storage import StoreUri
from components.storage.reader import StoredFolder
from components.stores.layout import StoreLayout
from components.stores.measured_speed import MeasuredSpeed, SpeedRecorder, cpu_name, find_speed, images_per_pass, store_speed
from pipeline.config import load_config

LAYOUT = StoreLayout(StoreUri("bucket", "prefix"))


class FolderStore(StoredFolder):
    """Writes what `StoredFolder` reads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def put_bytes(self, uri: StoreUri, content: bytes) -> None:
        path = self.folder / uri.bucket / uri.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def recorded(*rates: float) -> MeasuredSpeed | None:
    recorder = SpeedRecorder()
    for step, rate in enumerate(rates):
        recorder.add(step, {"perf/images_per_s": rate, "train/loss": 1.0})
        recorder.add(step, {"eval/held_out": 1.0})
    return recorder.speed("key", device="H100", devices=2)


def test_the_speed_is_the_median_after_the_first_window() -> None:
    speed = recorded(1.0, 100.0, 110.0, 5.0)
    assert speed is not None
    assert (speed.images_per_s, speed.windows) == (100.0, 3)


@pytest.mark.parametrize("rates", [(), (1.0,), (1.0, 100.0)])
def test_a_training_of_few_windows_measures_nothing(rates: tuple[float, ...]) -> None:
    assert recorded(*rates) is None


def test_only_a_training_with_the_same_numbers_of_everything_that_decides_the_speed_is_found(tmp_path: Path) -> None:
    store, speed = FolderStore(tmp_path), recorded(1.0, 100.0, 110.0)
    assert speed is not None
    base = load_config("demo", ["resources.device=auto"])
    store_speed(speed, base.recipe, base.resources, store, LAYOUT)  # type: ignore[arg-type]

    def find(*overrides: str, device: str = "H100") -> MeasuredSpeed | None:
        config = load_config("demo", ["resources.device=auto", *overrides])
        return find_speed(config.recipe, config.resources, device, store, LAYOUT)

    assert find() == find("optimizer.lr_peak=1e-3", "training.seed=3", "training.total_steps=5000") == speed
    same_pass = ["resources.processes=4", "training.batch_images=64"]
    assert find(*same_pass) == speed, "as many images on each device"
    for override in ("network.depth=5", "training.precision=bfloat16", "training.compile=true", "training.batch_images=64"):
        assert find(override) is None, override
    assert find(device="A100") is None


def test_a_damaged_speed_is_as_good_as_none(tmp_path: Path) -> None:
    store, speed, config = FolderStore(tmp_path), recorded(1.0, 2.0, 3.0), load_config("demo")
    assert speed is not None
    store_speed(speed, config.recipe, config.resources, store, LAYOUT)  # type: ignore[arg-type]
    assert find_speed(config.recipe, config.resources, "H100", store, LAYOUT) == speed
    (path,) = (path for path in tmp_path.rglob("*.json"))
    path.write_bytes(b'{"kind": "training-speed", "images_per_s": 0}')
    assert find_speed(config.recipe, config.resources, "H100", store, LAYOUT) is None


def test_images_per_pass_are_a_device_s_share_or_the_microbatch() -> None:
    config = load_config("demo")
    assert images_per_pass(config.training, config.resources) == 16
    smaller = load_config("demo", ["training.microbatch_images=8"])
    assert images_per_pass(smaller.training, smaller.resources) == 8


def test_a_cpu_is_named_by_its_model_or_its_architecture() -> None:
    assert cpu_name(lambda: "processor : 0\nmodel name\t: Xeon 1\nmodel name\t: Xeon 1\n").startswith("Xeon 1, ")
    assert cpu_name(lambda: "processor : 0\n").split(",")[0] not in ("", "Xeon 1")
