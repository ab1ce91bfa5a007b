"""What MLflow has not heard survives the machine: journals in object storage, told later from anywhere, once."""

from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.steps import keys_below

from components.storage import ObjectStore, StoreUri
from components.tracking.archive import JournalArchive
from components.tracking.journal import Attachment, Journal, LoggedImage
from components.tracking.metric_points import Point


class Heard:
    """A destination that keeps what it is told."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.pictures: list[tuple[str, int, int]] = []
        self.files: dict[str, str] = {}

    def logged_steps(self, key: str) -> set[int]:
        return {point.step for point in self.points if point.key == key}

    def log_metrics(self, points: list[Point]) -> None:
        self.points += points

    def log_image(self, image: LoggedImage, pixels: np.ndarray) -> None:
        self.pictures.append((image.key, image.step, int(pixels[0, 0, 0])))

    def log_file(self, attachment: Attachment, path: Path) -> None:
        self.files[attachment.artifact] = path.read_text()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    found = Journal(tmp_path / "journal")
    found.add_metrics(1, {"train/loss": 0.5})
    found.add_image(1, "samples/ema_grid", np.full((4, 4, 3), 7, np.uint8))
    found.add_file("profile/step-1.json", lambda path: path.write_text("trace") and None)
    return found


def test_what_was_saved_is_told_from_another_machine_and_then_gone(store: ObjectStore, prefix: StoreUri, journal: Journal) -> None:
    archive = JournalArchive(store, prefix, "a1")
    assert archive.save(journal)
    assert not archive.save(journal), "nothing new"
    journal.add_metrics(2, {"train/loss": 0.25})
    assert archive.save(journal)
    heard = Heard()
    assert JournalArchive(store, prefix, "a2").replay(heard) == 4
    assert [(p.key, p.step, p.value) for p in heard.points] == [("train/loss", 1, 0.5), ("train/loss", 2, 0.25)]
    assert heard.pictures == [("samples/ema_grid", 1, 7)]
    assert heard.files == {"profile/step-1.json": "trace"}
    assert keys_below(store, prefix) == []
    assert JournalArchive(store, prefix, "a2").replay(heard) == 0


def test_nothing_is_stored_while_everything_arrives(store: ObjectStore, prefix: StoreUri, journal: Journal) -> None:
    journal.deliver(Heard())
    assert not JournalArchive(store, prefix, "a1").save(journal)
    assert keys_below(store, prefix) == []


def test_a_replay_that_fails_is_done_again(store: ObjectStore, prefix: StoreUri, journal: Journal) -> None:
    JournalArchive(store, prefix, "a1").save(journal)

    class Failing(Heard):
        def log_file(self, attachment: Attachment, path: Path) -> None:
            raise ConnectionError("away")

    failing = Failing()
    with pytest.raises(ConnectionError):
        JournalArchive(store, prefix, "a2").replay(failing)
    heard = Heard()
    heard.points = failing.points
    JournalArchive(store, prefix, "a2").replay(heard)
    assert len(heard.points) == 1
    assert heard.files


def test_the_own_part_is_discarded_when_everything_arrived_after_all(store: ObjectStore, prefix: StoreUri, journal: Journal) -> None:
    archive = JournalArchive(store, prefix, "a1")
    archive.save(journal)
    journal.deliver(Heard())
    archive.discard()
    assert keys_below(store, prefix) == []
