"""A disk without room: every step reports it at once, with the space that it needs, and continues after room was made."""

import sys
from pathlib import Path

import pytest
from celebdit_testing.ranks import Training, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.small_disks import cannot_mount, leave, on_small_disk

from components.errors import EXIT_OK, TemporaryFailure
from components.resources import ResourcesConfig
from components.runtime.events import EventReader
from components.storage import StoreUri, connect

pytestmark = [pytest.mark.fault, pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount() or "-")]
FULL = TemporaryFailure.exit_code
SUPPORT = Path(__file__).parents[1] / "support"
_GET = """
import sys
from pathlib import Path
from components.storage import StoreUri, connect
from components.system.disk import DiskFull
try:
    connect(sys.argv[1], deadline_s=60.0).get_file(StoreUri.parse(sys.argv[2]), Path.cwd() / "downloads" / "faces.tar")
except DiskFull as error:
    print(error.message)
    raise SystemExit(error.exit_code)
"""


def test_a_download_that_does_not_fit_is_no_lost_connection(tmp_path: Path, rclone_endpoint: str, prefix: StoreUri) -> None:
    uri, disk = prefix / "faces.tar", tmp_path / "disk"
    connect(rclone_endpoint).put_bytes(uri, bytes(3_000_000))
    get = [sys.executable, "-c", _GET, rclone_endpoint, str(uri)]
    full, roomy = on_small_disk(disk, [(leave(disk, 1_000_000), get), ("rm filler", get)], size_bytes=8_000_000, environment={})
    assert full.code == FULL, full.output
    assert full.seconds < 20, "it did not wait for room"
    assert full.output.startswith(f"the disk of {disk / 'downloads'} is full: faces.tar needs 3.0 MB, ")
    assert roomy.code == EXIT_OK, roomy.output


_PUT = """
import os, sys
from pathlib import Path
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY, rclone_server
from components.storage import StoreUri, connect
from components.system.disk import DiskFull
os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
with rclone_server(Path.cwd() / "s3") as endpoint:
    try:
        connect(endpoint, deadline_s=60.0, disk=Path.cwd() / "s3").put_bytes(StoreUri.parse("s3://bucket/x/faces.tar"), bytes(3_000_000))
    except DiskFull as error:
        print(error.message)
        raise SystemExit(error.exit_code)
"""


def test_embedded_storage_without_room_is_reported_at_once(tmp_path: Path) -> None:
    disk, put = tmp_path / "disk", [sys.executable, "-c", _PUT]
    full, roomy = on_small_disk(
        disk, [(leave(disk, 1_000_000), put), ("rm filler", put)], size_bytes=8_000_000, environment={"PYTHONPATH": str(SUPPORT)}
    )
    assert full.code == FULL, full.output
    assert full.seconds < 20, "it did not wait for room"
    assert full.output.startswith(f"the disk of {disk / 's3'} is full: faces.tar needs 3.3 MB, ")
    assert roomy.code == EXIT_OK, roomy.output


def test_a_home_without_room_is_reported_before_a_server_starts(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    run = [sys.executable, "-m", "pipeline.cli", "run", "smoke", "--home", str(disk / "home")]
    (full,) = on_small_disk(disk, [(leave(disk, 100_000), run)], size_bytes=8_000_000, environment={})
    assert full.code == FULL, full.output
    assert full.seconds < 30
    assert f"the disk of {disk / 'home'} is full: what is kept there needs 33.6 MB, 0.1 MB are free" in full.output


@pytest.mark.slow
def test_a_training_says_what_it_has_no_room_for_and_goes_on_when_there_is(tmp_path: Path, rclone_endpoint: str) -> None:
    root, disk = StoreUri("bucket", tmp_path.parent.name) / tmp_path.name, tmp_path / "disk"
    dataset = small_dataset(tmp_path / "data", rclone_endpoint, root)
    training = Training(
        tmp_path / "run", rclone_endpoint, root / "run", tiny_recipe(), dataset, ResourcesConfig(device="cpu", rank_timeout_s=30.0)
    )
    training.folder.mkdir()
    request = tmp_path / "request.json"
    training.spec().dump(request)
    environment = {
        **training.machine_environment(),
        "CELEBDIT_WORK_DIR": str(disk),
        "CELEBDIT_EVENTS": str(tmp_path / "events.jsonl"),
        "CELEBDIT_STORAGE_DEADLINE_S": "300",
        "PYTHONPATH": str(SUPPORT),
    }
    launch = [sys.executable, "-m", "celebdit_testing.launcher", str(request)]
    moments = [(leave(disk, 0), launch), (leave(disk, 60_000), launch), (leave(disk, 200_000), launch), ("rm filler", launch)]
    nothing, no_pack, no_checkpoint, roomy = on_small_disk(disk, moments, size_bytes=32_000_000, environment=environment)
    for outcome in (nothing, no_pack, no_checkpoint):
        assert outcome.code == FULL, outcome.output
        assert outcome.seconds < 60, f"{outcome.seconds:.0f} s: {outcome.output}"
        assert "is full" in outcome.output.splitlines()[-2], outcome.output
        assert "MB are free" in outcome.output.splitlines()[-2]
        assert "run it again: finished work is kept" in outcome.output.splitlines()[-1]
    assert f"the dataset {dataset.digest[:12]} needs" in no_pack.output
    assert "a checkpoint needs" in no_checkpoint.output
    assert roomy.code == EXIT_OK, roomy.output


_RECORD = """
import sys
from pathlib import Path
from components.system.disk import DiskFull, full_disk_is_named
from components.tracking.journal import Journal
journal, before = Journal(Path.cwd() / "journal"), len(Journal(Path.cwd() / "journal").pending_entries()[0])
try:
    with full_disk_is_named(Path.cwd()):
        for step in range(before, before + 3000):
            journal.add_metrics(step, {"train/loss": 1.0})
except DiskFull as error:
    print(error.message)
    raise SystemExit(error.exit_code)
finally:
    print(*(entry.step for entry in journal.pending_entries()[0]))
"""


def test_a_journal_without_room_is_reported_and_keeps_every_complete_entry(tmp_path: Path) -> None:
    disk, record = tmp_path / "disk", [sys.executable, "-c", _RECORD]
    full, roomy = on_small_disk(disk, [(leave(disk, 100_000), record), ("rm filler", record)], size_bytes=8_000_000, environment={})
    assert full.code == FULL, full.output
    message, kept = full.output.splitlines()
    assert message.startswith(f"the disk of {disk} is full: a run needs ")
    assert roomy.code == EXIT_OK, roomy.output
    count = len(kept.split())
    assert 0 < count < 3000, "the disk was full in the middle"
    assert roomy.output.split() == [str(step) for step in range(count + 3000)], "no entry is lost, half an entry is none"


_STEP = """
from components.runtime.context import step
with step("gate") as context:
    context.events.note("n" * 5000)
"""


def test_a_step_whose_events_have_no_room_says_so_and_its_reader_gets_the_complete_ones(tmp_path: Path) -> None:
    disk, servers = tmp_path / "disk", {"CELEBDIT_STORE": "s3://bucket/x", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    environment = {**servers, "CELEBDIT_RUN_ID": "run-1", "CELEBDIT_EVENTS": str(disk / "events.jsonl"), "CELEBDIT_WORK_DIR": str(tmp_path)}
    environment["CELEBDIT_LOG_LEVEL"] = "WARNING"
    gate, show = [sys.executable, "-c", _STEP], ["cat", str(disk / "events.jsonl")]
    moments = [(leave(disk, 4096), gate), (leave(disk, 0), gate), ("true", show), ("rm filler", gate), ("true", show)]
    half, none, kept, roomy, shown = on_small_disk(disk, moments, size_bytes=1_000_000, environment=environment)
    for outcome in (half, none):
        assert outcome.code == FULL, outcome.output
        assert "No space left on device" in outcome.output or "is full" in outcome.output, outcome.output
        assert "Traceback" not in outcome.output
    assert '"kind": "started"' in kept.output
    assert roomy.code == EXIT_OK, roomy.output
    (tmp_path / "shown.jsonl").write_text(shown.output)
    kinds = [event.kind for event in EventReader(tmp_path / "shown.jsonl").read()]
    assert kinds[0] == "started"
    assert kinds[-3:] == ["started", "note", "finished"]


_LEDGER = """
from pathlib import Path
from components.errors import CelebditError
from components.ingest.dataset.ledger import Ledger
from components.ingest.ingest import _staging_folder
Path("ingest").mkdir(exist_ok=True)
try:
    with _staging_folder(Path.cwd() / "ingest" / "a"), Ledger(Path.cwd() / "ingest" / "a", held_out=0.0):
        pass
except CelebditError as error:
    print(error.message, error.hint)
    raise SystemExit(error.exit_code)
"""
_ROOM = """
from pathlib import Path
from components.errors import CelebditError
from components.preflight.preflight import _check_disk
from components.system.disk import RUN_FILES, full_disk_is_named, require_writable
codes, here = set(), Path.cwd()
def write() -> None:
    with full_disk_is_named(here):
        (here / "none" / "x" / "y").mkdir(parents=True)
for check in (lambda: _check_disk(here), lambda: require_writable(here, advice="use --home", room_bytes=1, room_files=9), write):
    try:
        check()
        codes.add(0)
    except CelebditError as error:
        print(error.message, error.hint)
        codes.add(error.exit_code)
raise SystemExit(*codes)
"""


def test_a_disk_without_inodes_is_full_whatever_space_is_free(tmp_path: Path) -> None:
    """What the checks before a run, and the end of a step, say where files can be written and none can be made."""
    disk, fill = tmp_path / "disk", "for n in $(seq 40); do touch filler-$n; done 2> /dev/null || true"
    ledger, room = [sys.executable, "-c", _LEDGER], [sys.executable, "-c", _ROOM]
    moments = [(fill, room), ("rm filler-1 filler-2 filler-3", ledger), (f"mount -o remount,nr_inodes=2000 {disk}", room)]
    full, of_ledger, roomy = on_small_disk(disk, moments, size_bytes=2**31, files=40, environment={})
    assert full.code == of_ledger.code == FULL, full.output + of_ledger.output
    assert len(full.output.splitlines()) == 3, full.output
    for line in [*full.output.splitlines(), of_ledger.output]:
        assert f"the disk of {disk}" in line
        assert "is full, it takes too few files for " in line
        assert "inodes and 2147.5 MB are free" in line
        assert "df -i" in line
        assert "needs" not in line, "there is space enough"
    assert "use --home" in full.output.splitlines()[1]
    assert roomy.code == EXIT_OK, roomy.output
