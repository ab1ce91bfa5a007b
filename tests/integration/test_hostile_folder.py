"""Commands started in a folder that holds Python files: none of our child processes runs them, whatever PYTHONPATH says."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from celebdit_testing.corpus import encoded
from celebdit_testing.traps import Traps
from PIL import Image

from components.ingest.candidates import Candidate
from components.ingest.decoding.pool import DecoderPool
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted
from components.runtime.launch import launch
from pipeline.services import Services

SLOW = [pytest.mark.fault, pytest.mark.slow]
HERE = [pytest.param(".", marks=SLOW), pytest.param("", marks=SLOW), f".{os.pathsep}", None]
_PROBE = """
import json, logging, random, socket, sys
from pathlib import Path
import PIL, torch
Path(sys.argv[1]).with_name("seen").write_text(str(Path.cwd()))
"""


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traps:
    """A hostile folder, which is the current one."""
    hostile = Traps(tmp_path / "images")
    hostile.assert_live()
    monkeypatch.chdir(hostile.folder)
    return hostile


@pytest.mark.parametrize("path", HERE)
def test_decoders_import_nothing_from_it(traps: Traps, path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False) if path is None else monkeypatch.setenv("PYTHONPATH", path)
    limits = Limits(image_px=8, max_image_bytes=10**6, max_image_pixels=10**6, max_ratio=100.0)
    with DecoderPool(limits, workers=1) as pool:
        ((_, verdict),) = pool.judge([Candidate("a.png", encoded(Image.new("RGB", (8, 8)), "PNG"))])
        folders = {Path(f"/proc/{worker.process.pid}/cwd").resolve() for worker in pool._alive}
    assert isinstance(verdict, Accepted)
    assert traps.folder not in folders
    assert traps.marks() == []


@pytest.mark.parametrize("path", HERE[2:])
def test_ranks_import_nothing_from_it(traps: Traps, path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes, job = tmp_path / "probes", tmp_path / "job"
    probes.mkdir()
    job.mkdir()
    (probes / "hostile_folder_probe.py").write_text(_PROBE)
    monkeypatch.setenv("PYTHONPATH", str(probes) if path is None else os.pathsep.join([path, str(probes)]))
    launch("hostile_folder_probe", Path("../job/spec.json"), work_dir=Path("../work"), processes=1, threads=1)
    assert Path((job / "seen").read_text()) == job
    assert traps.marks() == []


@pytest.mark.parametrize("path", [".", None])
def test_the_embedded_servers_import_nothing_from_it(
    traps: Traps, path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False) if path is None else monkeypatch.setenv("PYTHONPATH", path)
    for name in ("CELEBDIT_KFP_TOKEN", "MLFLOW_FLASK_SERVER_SECRET_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "canary-of-the-shell")
    services = Services(tmp_path / "home")
    with services.use():
        services.wait()
        family = [psutil.Process(server.pid) for server in services.running_servers().values()]
        family += [child for member in family for child in member.children(recursive=True)]
        assert len(family) >= 2, "MLflow's server and rclone"
        assert not [member.cmdline() for member in family if "canary-of-the-shell" in member.environ().values()]
        assert not [member.cmdline() for member in family if Path(member.cwd()) == traps.folder]
    assert traps.marks() == []


def test_an_ingest_of_the_folder_itself_runs_none_of_its_files(traps: Traps, embedded: Services) -> None:
    for number in range(3):
        (traps.folder / f"{number}.png").write_bytes(encoded(Image.effect_noise((16, 16), 40 + number).convert("RGB"), "PNG"))
    command = [Path(sys.executable).parent / "celebdit", "ingest", "--source", ".", "--image-px", "8", "--home", embedded.home]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=traps.folder, env=kept, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 images" in done.stderr
    assert traps.marks() == []
