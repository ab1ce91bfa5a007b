"""`celebdit ema` of a student of few steps warns, once, if another sampler or number of steps is asked for."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from celebdit_testing.command import celebdit_here

from components.weights import posthoc_ema
from model.config import SamplingConfig
from pipeline.commands import ema


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
    session = SimpleNamespace(context=lambda: None, services=None)
    monkeypatch.setattr(ema, "open_session", lambda home: nullcontext(session))
    monkeypatch.setattr(posthoc_ema, "compute_posthoc_ema", lambda *_, **__: SimpleNamespace(sampling=own))
    monkeypatch.setattr(ema, "_publish", lambda *_: {})
    widths = ("--sigma-rel", "0.08", "--sigma-rel", "0.1")
    done = celebdit_here("ema", "0" * 16, *widths, *options, home=tmp_path, capture=capsys)
    assert done.code == 0, done.err
    assert done.err.count("warning: this student was trained for ddpm with 4 steps") == count
