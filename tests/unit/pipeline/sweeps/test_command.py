"""`celebdit sweep` refuses bad input with exit code 2 before it makes a home, and a cluster without servers of its own."""

from pathlib import Path
from typing import Literal

import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.sweeps import METRIC, SWEEP

from pipeline.commands.sweep import _finish
from pipeline.sweeps.halving import Done
from pipeline.sweeps.records import Asked, Finished, SweepState
from pipeline.sweeps.search import Search
from pipeline.sweeps.sweep_file import load_sweep


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


@pytest.mark.parametrize(
    ("where", "gate", "following"),
    [
        ("here", "pass", 'models promote 3 --model celebdit-ended --reason "..."'),
        ("cluster", "pass", "models list --model celebdit-smoke"),
        ("here", "fail", None),
    ],
)
def test_the_end_has_score_samples_and_the_next_command_as_that_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, gate: Literal["pass", "fail"], following: str | None
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.replace("NAME", "ended"))
    planned = load_sweep(file)
    samples = tmp_path / "home" / "runs" / "ended-final" / "samples.png"
    if where == "here":
        samples.parent.mkdir(parents=True)
        samples.write_bytes(b"a grid")
    registered = {"version": "3", "model": "celebdit-ended"} if where == "here" and gate == "pass" else {}
    values = next(planned.space.combinations())
    final = Finished(
        at_s=2.0, trial=0, run_id="ended-final", run_key="abc", gate=gate, metric=METRIC, value=7.5, std=0.5, noise=20.0, **registered
    )
    state = SweepState.of([Asked(at_s=1.0, trial=0, values=values, sampler="grid"), final])
    code = _finish(planned, Search(state, Done(), None), file, home=tmp_path / "home", link=None, as_json=False, servers_stay=False)
    lines = capsys.readouterr().err.splitlines()
    assert code == (0 if gate == "pass" else 1)
    assert f"  score      {METRIC} 7.50 ± 0.98 (pure noise scores 20); lower is better" in lines
    assert (f"  samples    {samples}" in lines) is (where == "here")
    assert [line.partition("celebdit ")[2] for line in lines if line.startswith("  next")] == ([] if following is None else [following])
