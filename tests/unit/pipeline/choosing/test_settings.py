"""The settings that a stored training is evaluated with: those of another configuration must fit a student."""

from types import SimpleNamespace

import pytest
from celebdit_testing.recipes import tiny_recipe

from components.errors import BadInput
from model.config import DistillConfig, SamplingConfig
from pipeline.choosing import choice
from pipeline.choosing.settings import check_student_sampling
from pipeline.config import load_config

STUDENT = tiny_recipe().model_copy(update={"distill": DistillConfig(teacher="0" * 16, steps=3)})


def test_a_student_is_not_measured_with_the_sampler_of_another_configuration() -> None:
    sampling = load_config("smoke").sampling
    with pytest.raises(BadInput) as raised:
        check_student_sampling(STUDENT, sampling)
    assert "\n" not in raised.value.message
    assert f"sampling.sampler '{sampling.sampler}', sampling.num_steps {sampling.num_steps}" in raised.value.message
    assert raised.value.hint == "add sampling.sampler=ddpm sampling.num_steps=3"
    hint = str(raised.value.hint).removeprefix("add ").split()
    check_student_sampling(STUDENT, load_config("smoke", hint).sampling)
    check_student_sampling(tiny_recipe(), sampling)


def test_a_shifted_student_is_refused_too() -> None:
    with pytest.raises(BadInput, match=r"not with sampling\.time_shift 2\.0"):
        check_student_sampling(STUDENT, SamplingConfig(sampler="ddpm", num_steps=3, time_shift=2.0))


def test_an_evaluation_checks_the_sampling_before_it_looks_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(data=SimpleNamespace(tags={"celebdit.run_key": "0" * 16}))
    monkeypatch.setattr(choice, "find_training_run", lambda *_: run)
    monkeypatch.setattr(choice, "newest_spec", lambda *_: STUDENT)
    request = choice.Request("0" * 16, (), (), None, "smoke", (), registers=True)
    with pytest.raises(BadInput, match="is a student that draws images in 3 steps of its own"):
        choice.Choice.prepare(request, SimpleNamespace(tracking=None))  # type: ignore[arg-type]
