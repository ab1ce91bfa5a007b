"""Events in a file."""

import json
import threading
from pathlib import Path

from components.runtime.events import EventReader, Events


def test_events_written_by_many_threads_are_read_complete_and_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def talk(number: int) -> None:
        events = Events(f"step{number}", path)
        for index in range(50):
            events.note(f"{number}-{index} " + "x" * 500)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    reader, received = EventReader(path), []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        received += reader.read()
    received += reader.read()
    assert len(received) == 200
    assert reader.read() == []
    for number in range(4):
        mine = [event.facts["text"].split()[0] for event in received if event.step == f"step{number}"]
        assert mine == [f"{number}-{index}" for index in range(50)]


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"step": "train", "kind": "note", "at_s": 1.0, "facts": {"text": "hello"}})
    path.write_text(line[:20])
    reader = EventReader(path)
    assert reader.read() == []
    path.write_text(line + "\n")
    assert [event.facts["text"] for event in reader.read()] == ["hello"]


def test_progress_is_throttled_but_its_end_is_always_written(tmp_path: Path) -> None:
    now = [100.0]
    events = Events("train", tmp_path / "e", clock=lambda: now[0])
    for done in range(1, 101):
        now[0] += 0.01
        events.progress(done, 100)
    progress = [event.facts["done"] for event in EventReader(tmp_path / "e").read()]
    assert progress[-1] == 100
    assert 4 <= len(progress) <= 8
    events.progress(100, 100)
    assert len(EventReader(tmp_path / "e").read()) == len(progress), "the same line is written once"
