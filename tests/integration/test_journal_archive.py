"""Metrics that MLflow has not received survive the machine: archived journals are replayed once, from any machine."""

from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.steps import keys_below

from components.storage import ObjectStore, StoreUri
from components.tracking.archive import JournalArchive
from components.tracking.journal import Attachment, Journal, LoggedImage
from components.tracking.metric_points import Point


class RecordingDestination:
    """A destination that records what it receives."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.images: list[tuple[str, int, int]] = []
        self.files: dict[str, str] = {}

    def logged_steps(self, key: str) -> set[int]:
        return {point.step for point in self.points if point.key == key}

    def log_metrics(self, points: list[Point]) -> None:
        self.points += points

    def log_image(self, image: LoggedImage, pixels: np.ndarray) -> None:
        self.images.append((image.key, image.step, int(pixels[0, 0, 0])))

    def log_file(self, attachment: Attachment, path: Path) -> None:
        self.files[attachment.artifact] = path.read_text()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    pending_journal = Journal(tmp_path / "journal")
    pending_journal.add_metrics(1, {"train/loss": 0.5})
    pending_journal.add_image(1, "samples/ema_grid", np.full((4, 4, 3), 7, np.uint8))
    pending_journal.add_file("profile/step-1.json", lambda path: path.write_text("trace") and None)
    return pending_journal


def test_an_archived_journal_is_replayed_from_another_machine_and_then_deleted(
    store: ObjectStore, prefix: StoreUri, journal: Journal
) -> None:
    archive = JournalArchive(store, prefix, "a1")
    assert archive.save(journal)
    assert not archive.save(journal), "nothing new"
    journal.add_metrics(2, {"train/loss": 0.25})
    assert archive.save(journal)
    destination = RecordingDestination()
    assert JournalArchive(store, prefix, "a2").replay(destination) == 4
    assert [(p.key, p.step, p.value) for p in destination.points] == [("train/loss", 1, 0.5), ("train/loss", 2, 0.25)]
    assert destination.images == [("samples/ema_grid", 1, 7)]
    assert destination.files == {"profile/step-1.json": "trace"}
    assert keys_below(store, prefix) == []
    assert JournalArchive(store, prefix, "a2").replay(destination) == 0


def test_nothing_is_stored_while_everything_arrives(store: ObjectStore, prefix: StoreUri, journal: Journal) -> None:
    journal.deliver(RecordingDestination())
    assert not JournalArchive(store, prefix, "a1").save(journal)
    assert keys_below(store, prefix) == []


def test_a_replay_that_fails_is_done_again(store: ObjectStore, prefix: StoreUri, journal: Journal) -> None:
    JournalArchive(store, prefix, "a1").save(journal)

    class Failing(RecordingDestination):
        def log_file(self, attachment: Attachment, path: Path) -> None:
            raise ConnectionError("away")

    failing = Failing()
    with pytest.raises(ConnectionError):
        JournalArchive(store, prefix, "a2").replay(failing)
    destination = RecordingDestination()
    destination.points = failing.points
    JournalArchive(store, prefix, "a2").replay(destination)
    assert len(destination.points) == 1
    assert destination.files


def test_the_own_part_is_discarded_when_everything_arrived_after_all(store: ObjectStore, prefix: StoreUri, journal: Journal) -> None:
    archive = JournalArchive(store, prefix, "a1")
    archive.save(journal)
    journal.deliver(RecordingDestination())
    archive.discard()
    assert keys_below(store, prefix) == []
