"""The file of a sweep: refused as a whole before anything starts, in words; and the settings that trials get."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.errors import BadInput
from components.train.spec import run_key
from pipeline.sweeps.proposals import propose
from pipeline.sweeps.records import Asked, Piece, Scored, SweepState
from pipeline.sweeps.space import Range, Space, changes_of
from pipeline.sweeps.sweep_file import Sweep, load_sweep

GOOD = """
name = "tiny"
base = "smoke"
rungs = [4, 8]
keep_one_in = 2
seeds = [0, 1]
[vary]
optimizer.lr_peak = [1e-3, 2e-3]
"network.dropout" = [0.0, 0.1]
[evaluation]
num_images = 8
"""
STUDENT = """
num_images = 8
[settings.distill]
teacher = "53e830b04a95c9d2"
[settings.sampling]
sampler = "ddpm"
num_steps = 4
"""
RANGES = """
name = "tiny"
base = "smoke"
sampler = "random"
trials = 6
rungs = [4]
[vary]
optimizer.lr_peak = {low = 1e-4, high = 1e-2, log = true}
network.depth = {low = 1, high = 3}
diffusion = [{prediction = "x"}, {path = "vp_cosine", prediction = "eps"}]
"""
Loader = Callable[..., Sweep]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    def from_text(text: str, **changes: str) -> Sweep:
        for old, new in changes.items():
            lines = text.splitlines()
            hits = [number for number, line in enumerate(lines) if line.startswith(old)]
            if hits:
                lines[hits[0]] = new
            else:
                lines.insert(1, new)
            text = "\n".join(lines)
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return load_sweep(path)

    return from_text


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", ("unipc", 20)),
        ("[settings.sampling]\nseed = 1\n", ("unipc", 20)),
        ("[settings.sampling]\nnum_steps = 30\n", ("heun", 30)),
        ("[settings.sampling]\nnum_steps = 30\n[sampling]\nnum_steps = 4\n", ("heun", 4)),
        ('[sampling]\nsampler = "euler"\n', ("euler", 20)),
        ("[sampling]\n", ("heun", 20)),
    ],
)
def test_trials_are_drawn_in_few_network_calls_unless_the_file_says_how(load: Loader, table: str, expected: tuple[str, int]) -> None:
    sweep = load(GOOD.replace('"smoke"', '"demo"') + table)
    values = propose(sweep, 0, SweepState()).values
    trial, final = sweep.trial(values, seed=0, steps=4).sampling, sweep.final(values).sampling
    assert (trial.sampler, trial.num_steps) == expected
    assert (final.sampler, final.num_steps) == ("heun", 30 if "settings" in table and "30" in table else 20)


def test_the_sampling_of_trials_is_part_of_what_a_sweep_is(load: Loader) -> None:
    demo = GOOD.replace('"smoke"', '"demo"')
    default, same, other = (load(demo + table).digest for table in ("", '[sampling]\nsampler = "unipc"\n', "[sampling]\nnum_steps = 4\n"))
    assert default == same != other


def test_a_grid_has_every_combination_and_trials_are_measured_alike_without_a_gate(load: Loader) -> None:
    sweep = load(GOOD)
    assert sweep.num_trials == 4
    assert sweep.metric == "eval/fd_randconv_8"
    values = [propose(sweep, number, SweepState()).values for number in range(4)]
    assert values[1] == {"network.dropout": 0.0, "optimizer.lr_peak": 2e-3}
    trial, final = sweep.trial(values[3], seed=1, steps=4), sweep.final(values[3])
    assert (trial.optimizer.lr_peak, trial.network.dropout, trial.training.seed, trial.training.total_steps) == (2e-3, 0.1, 1, 4)
    assert (trial.evaluation.num_images, trial.evaluation.champion, trial.gate.no_worse_than_champion) == (8, False, False)
    assert (final.evaluation.num_images, final.evaluation.champion, final.gate.no_worse_than_champion) == (16, True, True)
    assert (final.training.seed, final.training.total_steps) == (0, 8)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[4] / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_examples_are_accepted(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.config.name == path.stem
    assert sweep.metric == {"demo-dropout": "eval/fd_randconv_200"}.get(path.stem, "eval/fd_randconv_300")


def test_settings_of_metrics_that_the_trials_do_not_measure_are_dropped(load: Loader) -> None:
    sweep = load(GOOD.replace('"smoke"', '"demo"') + 'metrics = ["frechet"]\n')
    values = propose(sweep, 0, SweepState()).values
    assert sweep.trial(values, seed=0, steps=4).evaluation.kid_subsets == 100, "the default"
    assert sweep.final(values).evaluation.kid_subsets == 10


def test_rungs_and_the_final_run_continue_the_same_training(load: Loader) -> None:
    sweep = load(GOOD)
    values = {"network.dropout": 0.1, "optimizer.lr_peak": 2e-3}
    keys = {run_key(sweep.trial(values, seed=0, steps=steps).recipe.identity("d" * 64)) for steps in (4, 8)}
    assert keys == {run_key(sweep.final(values).recipe.identity("d" * 64))}
    assert run_key(sweep.trial(values, seed=1, steps=4).recipe.identity("d" * 64)) not in keys


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": "rungs = [8, 8]"}, "rungs [8, 8]: 8 is not larger than 8"),
        ({"rungs": "rungs = [8, 4]"}, "rungs [8, 4]: 4 is not larger than 8"),
        ({"rungs": "rungs = []"}, "rungs"),
        ({"rungs": "rungs = [0, 4]"}, "rungs"),
        ({"rungs": "rungs = [4.0]"}, "rungs"),
        ({"metric": 'metric = "eval/fid_50k"'}, "metric 'eval/fid_50k' will not be measured"),
        ({"rung_s": "rung_s = [1]"}, "unknown key rung_s"),
        ({"seeds": "seeds = [1, 1]"}, "names a seed twice"),
        ({"seeds": "seeds = []"}, "seeds"),
        ({"sampler": 'sampler = "bayes"'}, "sampler"),
        ({"sampler": 'sampler = "random"'}, "trials is missing"),
        ({"trials": "trials = 3"}, "trials 3 is not the 4 combinations"),
        ({"final_steps": "final_steps = 5"}, "final_steps 5 must not be smaller than the last rung, 8"),
        ({"base": 'base = "smoky"'}, "smoky"),
        ({"base": "base = 3"}, "base"),
        ({"name": 'name = "A b"'}, "name: must look like"),
        ({"min_finished": "min_finished = 0"}, "min_finished"),
        ({"keep_one_in": "keep_one_in = 1"}, "keep_one_in"),
        ({"optimizer.lr_peak": "optimizer.lr_pek = [1e-3, 1e-4]"}, "lr_pek"),
        ({"optimizer.lr_peak": "optimizer.lr_peak = [1e-3, 7.0]"}, "no run accepts"),
        ({"optimizer.lr_peak": "optimizer.lr_peak = [1e-3, 1e-3]"}, "an option twice"),
        ({"optimizer.lr_peak": "optimizer.lr_peak = []"}, "no option"),
        ({"optimizer.lr_peak": "optimizer.lr_peak = {low = 1e-3, high = 1e-2}"}, "needs a list of values for optimizer.lr_peak"),
        ({"optimizer.lr_peak": "optimizer.lr_peak = {low = 1e-3}"}, "vary.optimizer.lr_peak.high is missing"),
        ({"optimizer.lr_peak": 'optimizer.lr_peak = "x"'}, "vary.optimizer.lr_peak"),
        ({"optimizer.lr_peak": "training.seed = [0, 1]"}, "set seeds"),
        ({"optimizer.lr_peak": "training.total_steps = [4, 8]"}, "training.total_steps does not decide what is trained"),
        ({"optimizer.lr_peak": "sampling.num_steps = [4, 8]"}, "moves the measurement"),
        ({"optimizer.lr_peak": "distill.steps = [4, 8]"}, "vary.distill.steps"),
        ({"num_images": STUDENT}, "a sweep cannot distil a teacher"),
        ({"optimizer.lr_peak": "nowhere.x = [4, 8]"}, "nowhere.x"),
        ({"optimizer.lr_peak": 'diffusion = [{prediction = "x"}, {prediction = "eps"}]'}, "no run accepts diffusion prediction=eps"),
        ({"num_images": "num_imgs = 8"}, ".toml: unknown key evaluation.num_imgs"),
        ({"num_images": "champion = true"}, ""),
    ],
)
def test_bad_input_is_refused_in_words(load: Loader, changes: dict[str, str], message: str) -> None:
    if not message:
        assert load(GOOD, **changes).trial_tables["evaluation"]["champion"] is False
        return
    with pytest.raises(BadInput) as refused:
        load(GOOD, **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["", "x = [", "name = 3\n", "\x00", 'name = "a"\nbase = "smoke"\nrungs = [1]\n[vary]\n'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(BadInput):
        load_sweep(tmp_path / "sweep.toml")
    with pytest.raises(BadInput, match="does not exist"):
        load_sweep(tmp_path / "nowhere.toml")


def test_a_base_file_is_relative_to_the_sweep(load: Loader, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "smoke"\n[optimizer]\nwarmup_steps = 7\n')
    assert load(GOOD, base='base = "mine.toml"').tables["optimizer"]["warmup_steps"] == 7


def test_the_digest_follows_what_decides_the_outcome_and_nothing_else(load: Loader) -> None:
    digest = load(GOOD).digest
    for changes in ({"budget_device_hours": "budget_device_hours = 2.0"}, {"parallel": "parallel = 9"}):
        assert load(GOOD, **changes).digest == digest
    assert load(GOOD + "[settings.resources]\nthreads = 2\n").digest == digest
    assert load(GOOD + "[settings.training]\nlog_every_steps = 2\n").digest == digest
    for changes in ({"rungs": "rungs = [4, 9]"}, {"seeds": "seeds = [0, 2]"}, {"num_images": "num_images = 9"}, {"name": 'name = "b"'}):
        assert load(GOOD, **changes).digest != digest
    assert load(GOOD + "[settings.optimizer]\nwarmup_steps = 1\n").digest != digest


def test_random_draws_are_a_function_of_the_seed_and_the_number(load: Loader) -> None:
    first, again, other = (load(RANGES, seed=f"seed = {seed}") for seed in (0, 0, 1))
    draws = [propose(first, number, SweepState()).values for number in range(6)]
    assert draws == [propose(again, number, SweepState()).values for number in range(6)]
    assert draws != [propose(other, number, SweepState()).values for number in range(6)]
    assert all(1e-4 <= values["optimizer.lr_peak"] <= 1e-2 for values in draws)
    assert {values["network.depth"] for values in draws} <= {1, 2, 3}
    for number in range(6):
        first.trial(draws[number], seed=0, steps=4)


def test_whole_numbers_are_drawn_with_their_ends_and_logarithms_evenly() -> None:
    space = Space.of({"a.n": Range(low=1, high=3), "a.x": Range(low=1e-4, high=1e-2, log=True), "a.c": ["p", "q"]})
    draws = [space.draw(0, number) for number in range(300)]
    counts = [sum(values["a.n"] == whole for values in draws) for whole in (1, 2, 3)]
    assert min(counts) > 70
    assert 110 < sum(values["a.x"] < 1e-3 for values in draws) < 190
    assert 110 < sum(values["a.c"] == "p" for values in draws) < 190


def test_choices_alone_are_drawn_without_repetition(load: Loader) -> None:
    sweep = load(GOOD, sampler='sampler = "random"', trials="trials = 4")
    draws = [propose(sweep, number, SweepState()).values for number in range(4)]
    assert len({str(values) for values in draws}) == 4


def test_an_option_of_a_section_sets_all_of_its_settings() -> None:
    values: dict[str, Any] = {"diffusion": {"path": "vp_cosine", "prediction": "eps"}, "optimizer.lr_peak": 1e-3}
    assert changes_of(values) == {"diffusion.path": "vp_cosine", "diffusion.prediction": "eps", "optimizer.lr_peak": 1e-3}


def history(sweep: Sweep, number: int) -> SweepState:
    """Trials whose score grows with the learning rate; the last one has none yet."""
    state = SweepState()
    for trial in range(number):
        values = {"diffusion": {"prediction": "x"}, "network.depth": 1 + trial % 3, "optimizer.lr_peak": 10 ** -(2 + 2 * trial / number)}
        state.add(Asked(at_s=0.0, trial=trial, values=values, sampler="tpe"))
        if trial < number - 1:
            score = Scored(at_s=0.0, piece=Piece(4, trial, 0), run_id="r", run_key="k", value=values["optimizer.lr_peak"])
            state.add(score)
    return state


@pytest.mark.parametrize(("sampler", "number"), [("tpe", 14), ("qmc", 3)])
def test_optuna_is_a_pure_function_of_the_records(load: Loader, sampler: str, number: int) -> None:
    sweep = load(RANGES, sampler=f'sampler = "{sampler}"', trials="trials = 20")
    state = history(sweep, number)
    proposals = [propose(sweep, trial, state) for trial in (number, number + 1, number)]
    assert proposals[0] == proposals[2]
    assert proposals[0] != proposals[1]
    assert proposals[0].history == number - 1
    assert str(proposals[0].sampler_version).startswith("optuna 5")
    for proposal in (*proposals, propose(sweep, 0, SweepState())):
        sweep.trial(proposal.values, seed=0, steps=4)
    if sampler == "tpe":
        rates = [propose(sweep, trial, state).values["optimizer.lr_peak"] for trial in range(14, 24)]
        assert sorted(rates)[5] < 1e-3, "it has learned that small rates are better"
        assert propose(sweep, 14, history(sweep, 13)) != proposals[0], "another history gives another answer"


def test_without_optuna_its_samplers_are_refused_before_anything_starts(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    monkeypatch.delitem(__import__("sys").modules, "pipeline.sweeps.optuna_samplers", raising=False)
    with pytest.raises(BadInput, match="optuna") as refused:
        load(RANGES, sampler='sampler = "tpe"')
    assert "make extras" in str(refused.value.hint)
