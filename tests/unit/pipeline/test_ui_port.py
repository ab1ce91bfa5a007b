"""The embedded MLflow listens where it listened before."""

from contextlib import closing
from pathlib import Path

import pytest

from components.errors import BadInput
from components.system.ports import free_port, listen
from pipeline.ui_port import FIRST_PORT, open_ui_listener


def port_of(home: Path, port: int | None = None) -> int:
    with closing(open_ui_listener(home, port)) as listener:
        return int(listener.getsockname()[1])


def test_a_home_keeps_its_port_and_two_homes_have_two(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("one", "other"))
    one.mkdir()
    other.mkdir()
    with closing(open_ui_listener(one, None)) as listener:
        first = listener.getsockname()[1]
        assert FIRST_PORT <= first < FIRST_PORT + 200
        second = port_of(other)
        assert second != first
    assert port_of(one) == first
    assert port_of(other) == second


def test_a_port_that_is_taken_is_left_out_this_time_only(tmp_path: Path) -> None:
    first = port_of(tmp_path)
    with closing(listen(first)):
        assert port_of(tmp_path) != first
    assert port_of(tmp_path) == first


def test_a_port_that_was_asked_for_is_remembered(tmp_path: Path) -> None:
    port_of(tmp_path)
    wanted = free_port()
    assert port_of(tmp_path, wanted) == wanted
    assert port_of(tmp_path) == wanted
    with closing(listen(wanted)), pytest.raises(BadInput, match=f"--mlflow-port {wanted} cannot be used"):
        open_ui_listener(tmp_path, wanted)


@pytest.mark.parametrize("text", ["", "a word", "99999999", "-3", "0", "\x00"])
def test_a_damaged_file_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlflow-port").write_text(text)
    assert FIRST_PORT <= port_of(tmp_path) < FIRST_PORT + 200
