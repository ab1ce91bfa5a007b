"""`celebdit ema` of a student of few steps warns, once, of another sampler or number of steps, and registers none with them."""

import shlex
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from celebdit_testing.command import celebdit_here

from components.weights import posthoc_ema
from model.config import SamplingConfig
from pipeline.commands import ema


def average_of(own: SamplingConfig | None, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Have the command get an average that draws with `own`; return what it publishes."""
    session, published = SimpleNamespace(context=lambda: SimpleNamespace(tracking=None), services=None), list[object]()
    monkeypatch.setattr(ema, "open_session", lambda home: nullcontext(session))
    monkeypatch.setattr(posthoc_ema, "compute_posthoc_ema", lambda *_, **__: SimpleNamespace(sampling=own))
    monkeypatch.setattr(posthoc_ema, "find_student_sampling", lambda *_: own)
    monkeypatch.setattr(ema, "_publish", lambda *arguments: published.append(arguments) or {})
    return published


@pytest.mark.parametrize(
    ("own", "options", "count"),
    [
        (SamplingConfig(sampler="ddpm", num_steps=4), ("--sampler", "unipc"), 1),
        (SamplingConfig(sampler="ddpm", num_steps=4), ("--steps", "8"), 1),
        (SamplingConfig(sampler="ddpm", num_steps=4), (), 0),
        (None, ("--sampler", "unipc"), 0),
    ],
)
def test_other_steps_than_those_of_a_student_give_one_warning(
    own: SamplingConfig | None,
    options: tuple[str, ...],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    average_of(own, monkeypatch)
    widths = ("--sigma-rel", "0.08", "--sigma-rel", "0.1")
    done = celebdit_here("ema", "0" * 16, *widths, *options, home=tmp_path, capture=capsys)
    assert done.code == 0, done.err
    register = shlex.split(done.err.partition("register one: celebdit ")[2])
    assert register == ["ema", "0" * 16, "--sigma-rel", "0.08", "--register", "MODEL", *options, "--home", str(tmp_path)]
    assert done.err.count("warning: this student was trained for ddpm with 4 steps") == count


@pytest.mark.parametrize(
    ("own", "options", "code"),
    [
        (SamplingConfig(sampler="ddpm", num_steps=4), ("--sampler", "unipc"), 2),
        (SamplingConfig(sampler="ddpm", num_steps=4), ("--steps", "8"), 2),
        (SamplingConfig(sampler="ddpm", num_steps=4), ("--steps", "4"), 0),
        (None, ("--sampler", "unipc"), 0),
    ],
)
def test_a_student_is_registered_with_its_own_steps_alone(
    own: SamplingConfig | None,
    options: tuple[str, ...],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published = average_of(own, monkeypatch)
    done = celebdit_here("ema", "0" * 16, "--sigma-rel", "0.08", "--register", "faces", *options, home=tmp_path, capture=capsys)
    assert (done.code, len(published)) == (code, 0 if code else 1), done.err
    assert ("--register: this student was trained for ddpm with 4 steps" in done.err) is (code == 2)
