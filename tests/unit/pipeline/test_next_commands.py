"""Commands that are printed for the user to run next work as printed: they name the folder that the command line named."""

import shlex
from pathlib import Path

import pytest
from celebdit_testing.command import celebdit_here

from pipeline.cli import main
from pipeline.home import default_home


def test_a_printed_command_names_the_home_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "a home"
    done = celebdit_here("runs", home=home, capture=capsys)
    assert f"run PRESET --home {shlex.quote(str(home))}." in done.err
    done = celebdit_here("plan", "smoke", home=home, capture=capsys)
    assert done.err.rstrip().endswith(f"run smoke --home {shlex.quote(str(home))}")


def test_a_printed_command_names_no_home_that_it_has_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELEBDIT_HOME", str(tmp_path))
    assert default_home() == tmp_path
    with pytest.raises(SystemExit):
        main(["runs"])
    assert "run PRESET. For those of a cluster" in capsys.readouterr().err
