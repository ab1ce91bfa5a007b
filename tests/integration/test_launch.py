"""What ranks get from the process that launches them, and what they open."""

import os
import shutil
import subprocess
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from celebdit_testing.processes import command_line, processes_below
from celebdit_testing.waiting import wait_until

from components.errors import RankLost, TemporaryFailure
from components.runtime.launch import launch

_PROBE = """
import os, sys
from pathlib import Path
names = ("CELEBDIT_WORK_DIR", "CELEBDIT_LIFELINE", "CELEBDIT_STORE_DISK")
Path(sys.argv[1]).with_name("seen").write_text(" ".join(os.environ[name] for name in names))
"""


@pytest.mark.fault
@pytest.mark.slow
def test_ranks_use_the_work_folder_of_their_launcher_and_leave_torchruns_files_beside_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work_folder_probe.py").write_text(_PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CELEBDIT_WORK_DIR", "/of/somebody/else")
    monkeypatch.setenv("CELEBDIT_LIFELINE", "/run/lifeline")
    monkeypatch.setenv("CELEBDIT_STORE_DISK", "/home/s3")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    launch("work_folder_probe", tmp_path / "spec.json", work_dir=tmp_path / "work", processes=1, threads=1)
    assert (tmp_path / "seen").read_text() == f"{tmp_path / 'work'} /run/lifeline /home/s3"
    assert not list(temporary.glob("torchelastic_*"))


_MEETING = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from components.runtime.rank import worker_main
from model.distributed import mean_over_ranks, process_group

def body(spec_path, rank):
    with process_group(rank.world, torch.device("cpu"), timeout_s=60):
        value = mean_over_ranks(torch.tensor([float(rank.world.rank)]), rank.world)
        spec_path.with_name(f"met-{rank.world.rank}").write_text(f"{value.item()} of {rank.world.size}")
        while spec_path.with_name("hold").exists():
            time.sleep(0.05)

worker_main("train", body)
"""


@pytest.fixture
def meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spec of two ranks that meet and average their numbers; they wait while `hold` exists beside it."""
    (tmp_path / "meeting_ranks.py").write_text(_MEETING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, value in {
        "CELEBDIT_STORE": "s3://bucket/x",
        "CELEBDIT_RUN_ID": "meeting",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "spec.json"


def _meet(spec: Path) -> None:
    launch("meeting_ranks", spec, work_dir=spec.parent / "work", processes=2, threads=1)


def _listening_below(process: psutil.Process) -> dict[str, set[str]]:
    """Return the addresses that the processes below `process` listen on, by the module that they run."""
    addresses: dict[str, set[str]] = {}
    for child in process.children(recursive=True):
        try:
            name = " ".join(command_line(child)[-3:])
            for socket in child.net_connections(kind="inet"):
                if socket.status == psutil.CONN_LISTEN:
                    addresses.setdefault(name, set()).add(socket.laddr.ip)
        except psutil.NoSuchProcess:
            continue
    return addresses


def test_agent_and_ranks_listen_on_loopback_only(meeting: Path) -> None:
    meeting.with_name("hold").touch()
    launched = threading.Thread(target=_meet, args=(meeting,))
    launched.start()
    try:
        wait_until(lambda: len(list(meeting.parent.glob("met-*"))) >= 2, timeout_s=120, every_s=0.1, alive=launched.is_alive)
        addresses = _listening_below(psutil.Process())
        ranks = {name: ips for name, ips in addresses.items() if "meeting_ranks" in name}
        assert ranks, "the two ranks talk through sockets of their own, so something must be seen"
        assert all(ip_address(ip).is_loopback for ips in ranks.values() for ip in ips), addresses
    finally:
        meeting.with_name("hold").unlink()
        launched.join(60)
    assert meeting.with_name("met-0").read_text() == "0.5 of 2"
    assert not list(meeting.parent.glob("rendezvous-*")), "the meeting place is removed"


@pytest.mark.fault
@pytest.mark.slow
def test_rendezvous_folder_is_closed_to_other_users(meeting: Path) -> None:
    (meeting.parent / "meeting_ranks.py").write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "folder = Path(os.environ['CELEBDIT_RENDEZVOUS']).parent\n"
        "Path(sys.argv[1]).with_name('mode').write_text(oct(folder.stat().st_mode & 0o777))\n"
    )
    launch("meeting_ranks", meeting, work_dir=meeting.parent / "work", processes=1, threads=1)
    assert meeting.with_name("mode").read_text() == "0o700"


@pytest.mark.fault
@pytest.mark.slow
def test_environment_of_a_training_job_around_does_not_steer_a_launch(meeting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "7",
        "PET_RDZV_ENDPOINT": "10.255.255.1:29500",
        "PET_MASTER_ADDR": "10.255.255.1",
        "MASTER_ADDR": "10.255.255.1",
        "MASTER_PORT": "1",
        "RANK": "5",
        "WORLD_SIZE": "8",
        "GLOO_SOCKET_IFNAME": "no-such-interface",
        "TORCHELASTIC_RUN_ID": "other",
    }
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    _meet(meeting)
    assert meeting.with_name("met-1").read_text() == "0.5 of 2"


_ENDS = """
import os, signal, sys, time
from pathlib import Path
import psutil
from components.errors import RankLost
from components.runtime.rank import worker_main
from components.system.process_table import is_alive

def body(spec_path, rank):
    if rank.world.rank == 0:
        other, dies = spec_path.with_name("other"), spec_path.with_name("die").exists()
        while not other.exists() or not other.read_text() or (dies and is_living(int(other.read_text()))):
            time.sleep(0.01)
        raise RankLost("another rank is gone or did not answer for 3 s")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spec_path.with_name("other").write_text(str(os.getpid()))
    if spec_path.with_name("die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def is_living(pid):
    return psutil.pid_exists(pid) and is_alive(psutil.Process(pid))

worker_main("train", body)
"""


@pytest.mark.fault
@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_with_its_signal(meeting: Path) -> None:
    (meeting.parent / "meeting_ranks.py").write_text(_ENDS)
    meeting.with_name("die").touch()
    with pytest.raises(TemporaryFailure) as raised:
        _meet(meeting)
    assert raised.value.message == "rank 1 was killed by SIGKILL, not by the launcher; the kernel counted no lack of memory"


@pytest.mark.fault
@pytest.mark.slow
def test_a_rank_that_the_launcher_stopped_is_not_taken_for_the_cause(meeting: Path) -> None:
    """Torchrun waits half a minute before it kills a rank that ignores SIGTERM."""
    (meeting.parent / "meeting_ranks.py").write_text(_ENDS)
    with pytest.raises(RankLost) as raised:
        _meet(meeting)
    assert not psutil.pid_exists(int(meeting.with_name("other").read_text())), "it was killed after it ignored SIGTERM"
    assert raised.value.message == (
        "rank 0: another rank is gone or did not answer for 3 s; rank 1 did not end and had to be stopped by the launcher"
    )


_UNSHARE = ["unshare", "--user", "--map-root-user", "--uts"]


def _cannot_unshare() -> str:
    """Return why this machine cannot give a process a hostname of its own, or nothing if it can."""
    if shutil.which("unshare") is None:
        return "needs unshare (util-linux)"
    done = subprocess.run([*_UNSHARE, "hostname", "x"], capture_output=True, text=True, check=False)
    return f"needs a UTS namespace: {done.stderr.strip()}" if done.returncode else ""


@pytest.mark.skipif(bool(_cannot_unshare()), reason=_cannot_unshare() or "-")
@pytest.mark.fault
@pytest.mark.slow
def test_ranks_meet_although_the_hostname_does_not_resolve(meeting: Path) -> None:
    script = (
        "from pathlib import Path; from components.runtime.launch import launch; "
        f"launch('meeting_ranks', Path({str(meeting)!r}), work_dir=Path({str(meeting.parent / 'work')!r}), processes=2, threads=1)"
    )
    command = [*_UNSHARE, "sh", "-c", 'hostname no-such-host-xyz && exec "$0" "$@"', sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert meeting.with_name("met-0").read_text() == "0.5 of 2"


@pytest.mark.fault
@pytest.mark.slow
def test_ranks_that_do_not_start_are_ended_with_a_message(meeting: Path) -> None:
    (meeting.parent / "meeting_ranks.py").write_text("import time\ntime.sleep(300)\n")
    began_s = time.monotonic()
    with pytest.raises(TemporaryFailure, match=r"of 2 processes of meeting_ranks none started within 8 s"):
        launch("meeting_ranks", meeting, work_dir=meeting.parent / "work", processes=2, threads=1, start_timeout_s=8.0)
    assert time.monotonic() - began_s < 60
    assert not processes_below(os.getpid(), running="meeting_ranks")


@pytest.mark.fault
@pytest.mark.slow
def test_modules_of_the_current_folder_are_not_imported(meeting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = meeting.parent / "images"
    folder.mkdir()
    (folder / "json.py").write_text(f"open({str(meeting.with_name('ran'))!r}, 'w').close()\nraise SystemExit(9)\n")
    monkeypatch.chdir(folder)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--help"], env={**os.environ}, capture_output=True, check=False)
    assert meeting.with_name("ran").exists(), "the payload is live: python -m alone runs it"
    meeting.with_name("ran").unlink()
    _meet(meeting)
    assert not meeting.with_name("ran").exists()
