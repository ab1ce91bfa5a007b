"""A run of hours is shown and asked about, but only where a person can answer."""

import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from components.errors import Interrupted
from pipeline.commands import cost_question
from pipeline.commands.cost_question import ask_about_cost, pixels_of
from pipeline.config import RunConfig, load_config

LONG = {
    "data.licence_accepted_by": "a test",
    "evaluation.extractor": "random-conv",
    "evaluation.weights": None,
    "evaluation.weights_sha256": None,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a person at a terminal was asked; the answer is no."""
    questions: list[str] = []

    def answer(text: str, **how: object) -> bool:
        questions.append(text)
        return False

    monkeypatch.setattr(cost_question, "is_person_there", lambda: True)
    monkeypatch.setattr(click, "confirm", answer)
    return questions


def long_run(preset: str = "celebahq256-s") -> RunConfig:
    return load_config(preset, changes=LONG)


def test_a_person_sees_the_cost_of_a_run_of_hours_and_can_say_no(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["training.total_steps=10000000", "training.batch_images=1000000", "resources.device=cuda", "resources.processes=1"]
    with pytest.raises(Interrupted, match="nothing was started"):
        ask_about_cost(load_config("smoke", settings), "mine.toml", home=tmp_path, yes=False)
    assert asked == ["Start it?"]
    shown = capsys.readouterr().err
    assert "plan of mine" in shown
    assert "on 1 x H100" in shown
    assert "this run takes about" in shown
    assert not list(tmp_path.iterdir())


def test_nobody_is_asked_about_a_short_run_or_with_yes(asked: list[str], tmp_path: Path) -> None:
    for preset in ("demo", "smoke"):
        ask_about_cost(load_config(preset), preset, home=tmp_path, yes=False)
    ask_about_cost(long_run("celebahq256-xl"), "celebahq256-xl", home=tmp_path, yes=True)
    assert asked == []
    assert pixels_of(load_config("demo")) < 1e9 < pixels_of(long_run())


@pytest.mark.parametrize("script", ["stdin", "stderr", None])
def test_only_two_terminals_are_a_person(monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(sys, name, SimpleNamespace(isatty=lambda name=name: name != script))
    assert cost_question.is_person_there() is (script is None)


def test_a_script_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click, "confirm", lambda text, **how: pytest.fail("it was asked"))
    ask_about_cost(long_run("celebahq256-xl"), "celebahq256-xl", home=tmp_path, yes=False)


def test_a_long_run_on_cpus_is_asked_about_too(asked: list[str], tmp_path: Path) -> None:
    config = load_config("demo", ["training.total_steps=500000", "optimizer.decay_steps=500000"])
    with pytest.raises(Interrupted):
        ask_about_cost(config, "demo", home=tmp_path, yes=False)
    assert cost_question.pixels_of(config) > 2e9
