"""`celebdit sweep` refuses bad input with exit code 2 before it makes a home, and a cluster without servers of its own."""

from pathlib import Path

import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.sweeps import SWEEP


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rungs = [4, 8]", "rungs = [8, 8]", "8 is not larger than 8"),
        ("rungs = [4, 8]", "rungs = [4, 8]\nmetric = 'eval/fid_50k'", "will not be measured"),
        ("keep_one_in", "keep_one_out", "unknown key keep_one_out"),
        ('base = "smoke"', 'base = "celebahq256-s"', "accept"),
        ("[vary]", "[settings.data]\nsource = '/nowhere/images.zip'\n[vary]", "/nowhere/images.zip"),
        ("[vary]", "[settings.resources]\nnodes = 2\n[vary]", "resources.nodes is 2"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], no_endpoints: None, old: str, new: str, message: str
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.replace("NAME", "bad").replace(old, new))
    done = celebdit_here("sweep", str(file), home=tmp_path / "home", capture=capfd)
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "home").exists()


def test_a_cluster_that_cannot_be_reached_is_refused_before_anything_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], no_endpoints: None
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.replace("NAME", "there"))
    done = celebdit_here("sweep", str(file), "--submit", "--images", str(tmp_path / "none.json"), home=tmp_path / "home", capture=capfd)
    assert done.code == 2, done.err
    assert "none.json" in done.err
    assert not (tmp_path / "home").exists()
