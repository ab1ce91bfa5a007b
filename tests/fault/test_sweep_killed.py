"""A real sweep that is killed and run again: rungs continue the same training, and one model is registered."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from celebdit_testing.command import COMMAND, celebdit
from celebdit_testing.sweeps import small_sweep
from celebdit_testing.waiting import wait_until

from components.storage import StoreUri
from components.storage.reader import StoredFolder
from components.stores.checkpoint_names import committed_checkpoints
from components.stores.layout import StoreLayout
from pipeline.server_commands import EMBEDDED_STORE
from pipeline.sweeps.records import RECORD, Failed, Finished, Record, Scored

pytestmark = [pytest.mark.fault, pytest.mark.slow]

SETTINGS = """
[settings.resources]
processes = 1
[evaluation]
num_images = 8
"""


def record_files(home: Path) -> list[Path]:
    return sorted((home / "s3" / EMBEDDED_STORE.removeprefix("s3://") / "sweeps").glob("*/records/*.json"))


def records_of(home: Path) -> list[Record]:
    return [RECORD.validate_json(path.read_bytes()) for path in record_files(home)]


@pytest.mark.timeout(1800)
def test_killed_and_run_again_a_sweep_registers_one_model(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "killed.toml"
    file.write_text(small_sweep(SETTINGS, name="killed", rungs="[4, 12]", rates="[1e-3, 3e-3]"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*COMMAND, "sweep", str(file), "--home", str(home)], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(record_files(home)) == 5, timeout_s=600, every_s=0.1, alive=lambda: first.poll() is None)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [record.kind for record in records_of(home)] == ["asked", "started", "scored", "asked", "started"]

    again = celebdit("sweep", str(file), "--json", home=home, timeout_s=1200)
    (samples,) = re.findall(r"^  samples    (.+)$", again.err, re.MULTILINE)
    assert Path(samples).read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^  next       .+ models promote 1 --model ", again.err, re.MULTILINE)
    assert again.code == 0, again.err
    records = records_of(home)
    scored = [record for record in records if isinstance(record, Scored)]
    assert [(record.piece.steps, record.piece.trial) for record in scored][:2] == [(4, 0), (4, 1)]
    assert len(scored) == 3, "nothing was measured twice"
    assert not any(isinstance(record, Failed) for record in records)
    (final,) = [record for record in records if isinstance(record, Finished)]
    assert again.json["final"]["version"] == final.version == "1"
    winner = next(record for record in scored if record.piece.steps == 12)
    below = next(record for record in scored if record.piece.steps == 4 and record.piece.trial == winner.piece.trial)
    assert winner.run_key == below.run_key == final.run_key, "a rung continues the training of the one before"
    layout = StoreLayout(StoreUri.parse(EMBEDDED_STORE))
    names = [item.uri for item in StoredFolder(home / "s3").list(layout.run(winner.run_key).checkpoints)]
    assert committed_checkpoints(names)[0].step == 12

    third = celebdit("sweep", str(file), "--json", home=home, timeout_s=600)
    assert (third.code, third.json["final"]) == (0, again.json["final"])
    assert len(records_of(home)) == len(records), "it was over"
    assert json.loads(third.out)["device_hours"] > 0
