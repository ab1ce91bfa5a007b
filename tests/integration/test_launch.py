"""What ranks are given by the process that launches them."""

from pathlib import Path

import pytest

from components.runtime.launch import launch

_PROBE = """
import os, sys
from pathlib import Path
Path(sys.argv[1]).with_name("seen").write_text(os.environ["CELEBDIT_WORK_DIR"])
"""


def test_ranks_use_the_work_folder_of_their_launcher_and_leave_torchruns_files_beside_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work_folder_probe.py").write_text(_PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CELEBDIT_WORK_DIR", "/of/somebody/else")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    launch("work_folder_probe", tmp_path / "spec.json", work_dir=tmp_path / "work", processes=1, threads=1)
    assert (tmp_path / "seen").read_text() == str(tmp_path / "work")
    assert not list(temporary.glob("torchelastic_*"))
