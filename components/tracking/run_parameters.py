"""Names and parameters of runs in MLflow: what a person wants to see of a training in a list, and what two runs are compared by.

Promises: pure functions; at most 40 parameters of a pipeline run, and six more where choices that are off by default are on: MLflow's
pages do not show many well.
"""

from components.manifests import DatasetManifest
from components.resources import ResourcesConfig
from model.config import DiffusionConfig, NetworkConfig, OptimizerConfig, SamplingConfig, TrainingConfig, TrainingRecipe

Parameters = dict[str, object]
_DIGEST_CHARACTERS = 16
_FIELDS: dict[type, dict[str, tuple[str, ...]]] = {
    DiffusionConfig: {"diffusion": ("prediction", "path", "weighting", "times", "time_shift")},
    OptimizerConfig: {"optimizer": ("lr_peak", "schedule", "warmup_steps", "decay_steps", "weight_decay")},
    TrainingConfig: {"training": ("batch_images", "precision", "seed", "ema_sigma_rel", "ema_decay", "horizontal_flip")},
    NetworkConfig: {
        "network": ("codec", "latent_channels", "width", "depth", "heads", "patch_px", "channels", "block", "dropout", "image_px")
    },
    SamplingConfig: {"sampling": ("sampler", "num_steps", "ema", "seed")},
}


def run_name(preset: str | None, recipe: TrainingRecipe, dataset: DatasetManifest) -> str:
    """Return a name that says what a run is, like `celebahq256-b x-pred lr2e-4 s0`; without a preset the dataset and the network's size."""
    network, distill = recipe.network, recipe.distill
    what = preset or f"{dataset.name} w{network.width} d{network.depth}"
    if distill is not None:
        what += f" distilled to {distill.steps}"
    return f"{what} {recipe.diffusion.prediction}-pred lr{_short_text(recipe.optimizer.lr_peak)} s{recipe.training.seed}"


def training_parameters(recipe: TrainingRecipe, dataset: DatasetManifest) -> Parameters:
    """Return the parameters of a training that it keeps for ever; its length and its scores may change when it is continued."""
    return {
        **_fields_of(recipe.diffusion),
        **_fields_of(recipe.optimizer),
        **_fields_of(recipe.training),
        **_fields_of(recipe.network),
        **_network_choices(recipe.network),
        **_distillation(recipe),
        "data.name": dataset.name,
        "data.num_images": dataset.num_images,
        "data.digest": dataset.digest[:_DIGEST_CHARACTERS],
    }


def pipeline_parameters(
    recipe: TrainingRecipe, dataset: DatasetManifest, sampling: SamplingConfig, resources: ResourcesConfig, preset: str | None
) -> Parameters:
    """Return the parameters of a pipeline run: those of its training, and how it samples and where it runs."""
    return {
        **({} if preset is None else {"preset": preset}),
        "training.total_steps": recipe.training.total_steps,
        **_scores(recipe.training),
        **training_parameters(recipe, dataset),
        "data.source": dataset.source,
        **_fields_of(sampling),
        "resources.device": resources.device,
        "resources.ranks": resources.num_ranks,
    }


def _network_choices(network: NetworkConfig) -> Parameters:
    """Return the settings that are off by default, where they are on: most networks have none."""
    choices = {name: getattr(network, name) for name in ("group_channels", "codec_dropout", "augmentation")}
    return {f"network.{name}": value for name, value in choices.items() if value}


def _distillation(recipe: TrainingRecipe) -> Parameters:
    """Return the teacher of a student and its steps, if it is one."""
    if recipe.distill is None or recipe.teacher is None:
        return {}
    return {"distill.steps": recipe.distill.steps, "distill.teacher": recipe.teacher.summary}


def _scores(training: TrainingConfig) -> Parameters:
    """Return what is scored and when as one parameter, if anything is."""
    if training.score_every_steps is None:
        return {}
    return {
        "training.scores": f"{_text(training.score_metrics)} of {training.score_images} images every {training.score_every_steps} steps"
    }


def _fields_of(section: object) -> Parameters:
    ((name, fields),) = _FIELDS[type(section)].items()
    return {f"{name}.{field}": _text(getattr(section, field)) for field in fields}


def _text(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def _short_text(number: float) -> str:
    """Return a number as people write it: 2e-4, not 0.0002."""
    mantissa, exponent = f"{number:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
