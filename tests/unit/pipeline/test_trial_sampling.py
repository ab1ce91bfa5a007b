"""Trials draw their images in few network calls, and what is registered is drawn as its run says."""

import pytest
from celebdit_testing.recipes import tiny_recipe

from model.config import DistillConfig, SamplingConfig
from pipeline.choosing.settings import for_candidates
from pipeline.config import RunConfig, load_config
from pipeline.trial_sampling import trial_sampling


@pytest.mark.parametrize(("sampler", "num_steps"), [("heun", 11), ("heun", 32), ("ddpm", 1000), ("unipc", 21), ("euler", 50)])
def test_a_sampler_with_many_calls_is_replaced(sampler: str, num_steps: int) -> None:
    assert trial_sampling(SamplingConfig(sampler=sampler, num_steps=num_steps)) == {"sampler": "unipc", "num_steps": 20}


@pytest.mark.parametrize(("sampler", "num_steps"), [("heun", 10), ("unipc", 20), ("dpmpp_2m", 12), ("euler", 2)])
def test_one_with_few_calls_stays(sampler: str, num_steps: int) -> None:
    assert trial_sampling(SamplingConfig(sampler=sampler, num_steps=num_steps)) == {}


def test_a_shifted_sampler_stays() -> None:
    assert trial_sampling(SamplingConfig(sampler="heun", num_steps=32, time_shift=3.0)) == {}


def test_noise_that_unipc_does_not_add_is_left_out() -> None:
    assert trial_sampling(SamplingConfig(sampler="ddim", num_steps=50, eta=0.5))["eta"] == 0.0


def sampler_of(settings: RunConfig) -> tuple[str, int]:
    return settings.sampling.sampler, settings.sampling.num_steps


def test_candidates_are_drawn_so_unless_a_sampler_is_named() -> None:
    demo, recipe = load_config("demo", ["sampling.seed=5"]), tiny_recipe()
    few = for_candidates(demo, recipe, None, ())
    assert sampler_of(few) == ("unipc", 20)
    assert few.model_copy(update={"sampling": demo.sampling}) == demo, "nothing else changes"
    assert few.sampling.seed == 5
    for overrides in (("sampling.num_steps=20",), ("sampling.sampler=heun",), ('"sampling".num_steps=20',)):
        assert for_candidates(demo, recipe, None, overrides) == demo
    assert sampler_of(for_candidates(demo, recipe, None, ("sampling.seed=3",))) == ("unipc", 20)
    assert for_candidates(demo, recipe, "demo", ()) == demo, "another configuration names its sampler"


def test_noise_that_an_override_names_is_added() -> None:
    settings = load_config("demo", ["sampling.sampler=ddim", "sampling.num_steps=50", "sampling.eta=0.5"])
    assert for_candidates(settings, tiny_recipe(), None, ("sampling.eta=0.5",)) == settings


def test_a_student_is_drawn_in_its_own_steps() -> None:
    student = tiny_recipe().model_copy(update={"distill": DistillConfig(teacher="0" * 16, steps=32)})
    settings = load_config("demo", ["sampling.sampler=ddpm", "sampling.num_steps=32"])
    assert for_candidates(settings, student, None, ()) == settings
