"""Which settings belong to which variant: the table, and what follows from it.

Promises: a setting of a variant that is not chosen changes nothing in a run, so it is refused unless it has its default, which is what
`celebdit config show` prints; where a later layer (an override, a file with a base) chooses another variant, the earlier layers' settings
of the old one are dropped. Stored configurations are not checked here: what was accepted once can still be read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.features.names import RANDOM_CONV
from model.frozen_config import FrozenConfig
from model.sampler_table import samplers_that_use_eta


@dataclass(frozen=True)
class Variant:
    """Settings that count only while another one, `choice`, has one of `values` (or, with `unless`, none of them)."""

    choice: str
    values: tuple[str | bool | None, ...]
    """None stands for a choice that has no value."""
    settings: tuple[str, ...]
    unless: bool = False
    property_name: str | None = None
    """Where to read the choice if its default depends on other settings."""

    @property
    def words(self) -> str:
        """The values in words: `'cosine' or 'inverse_sqrt'`, or `set` for any value."""
        if self.unless and self.values == (None,):
            return "set"
        names = " or ".join(toml_value(value) for value in self.values)
        return f"other than {names}" if self.unless else names

    def is_chosen(self, sections: Mapping[str, FrozenConfig]) -> bool:
        """Return whether the settings count."""
        chosen = self.choice_in(sections)
        hit = any(item in self.values for item in chosen) if isinstance(chosen, tuple | list) else chosen in self.values
        return hit != self.unless

    def choice_in(self, sections: Mapping[str, FrozenConfig]) -> Any:
        """Return the value of the choice."""
        section, name = self.choice.split(".")
        return getattr(sections[section], self.property_name or name)


VARIANTS = (
    Variant(
        "network.codec",
        ("residual",),
        (
            "network.stem_px",
            "network.channels",
            "network.res_blocks",
            "network.res_norm",
            "network.group_channels",
            "network.codec_dropout",
            "network.linear_output",
            "network.local_share",
        ),
    ),
    Variant("network.res_norm", ("group",), ("network.group_channels",)),
    Variant("network.codec", ("residual", "plain"), ("network.block", "network.dropout", "network.augmentation", "network.linear_path")),
    Variant("diffusion.weighting", ("min_snr",), ("diffusion.min_snr_gamma",)),
    Variant("diffusion.weighting", ("sigmoid",), ("diffusion.sigmoid_bias",)),
    Variant("diffusion.weighting", ("v",), ("diffusion.sigma_floor",)),
    Variant("diffusion.times", ("logit_normal",), ("diffusion.logit_mean", "diffusion.logit_std", "diffusion.uniform_share")),
    Variant("optimizer.schedule", ("cosine", "inverse_sqrt"), ("optimizer.decay_steps",)),
    Variant("optimizer.schedule", ("cosine",), ("optimizer.lr_floor",)),
    Variant("distill.teacher", (None,), ("distill.steps", "distill.teacher_ema"), unless=True),
    Variant("training.score_every_steps", (None,), ("training.score_images", "training.score_metrics"), unless=True),
    Variant("sampling.sampler", tuple(samplers_that_use_eta()), ("sampling.eta",)),
    Variant("diffusion.path", ("vp_linear", "vp_cosine", "vp_zero_snr"), ("sampling.spacing",)),
    Variant("evaluation.extractor", (RANDOM_CONV,), ("evaluation.weights", "evaluation.weights_sha256"), unless=True),
    Variant("evaluation.metrics", ("kid",), ("evaluation.kid_subsets", "evaluation.kid_subset_images"), property_name="metric_names"),
    Variant(
        "evaluation.metrics",
        ("precision_recall",),
        ("evaluation.vgg_weights", "evaluation.vgg_weights_sha256"),
        property_name="metric_names",
    ),
    Variant("evaluation.memorisation", (True,), ("evaluation.memorisation_images", "evaluation.memorised_below")),
    Variant("gate.no_worse_than_champion", (True,), ("gate.tolerance",)),
)


def misplaced_settings(sections: Mapping[str, FrozenConfig]) -> Iterator[str]:
    """Return one line per setting that has a value of its own and belongs to a variant that is not chosen.

    Sections that are missing are not looked at.
    """
    for variant in VARIANTS:
        names = [variant.choice, *variant.settings]
        if any(name.split(".")[0] not in sections for name in names) or variant.is_chosen(sections):
            continue
        for setting in variant.settings:
            section, name = setting.split(".")
            value = getattr(sections[section], name)
            if value != _default(type(sections[section]), name):
                choice = variant.choice_in(sections)
                chosen = "unset" if choice is None else toml_value(choice)
                place = f"{variant.choice} {variant.words}, and {variant.choice} is {chosen}"
                yield f"{setting} {toml_value(value)} belongs to {place}: leave it out"


def drop_unchosen(
    raw: dict[str, Any], before: Mapping[str, Any], layer: Mapping[str, Any], kinds: Mapping[str, type[FrozenConfig]]
) -> None:
    """Remove from `raw`, which is `before` under `layer`, the settings that only the variant chosen in `before` had.

    A setting that `layer` has itself stays, and is refused later if it is misplaced. Values are plain and may be invalid.
    """
    old, new = _build_unvalidated(before, kinds), _build_unvalidated(raw, kinds)
    for variant in VARIANTS:
        if variant.choice_in(old) == variant.choice_in(new) or variant.is_chosen(new):
            continue
        for setting in variant.settings:
            section, name = setting.split(".")
            if name not in _table(layer, section):
                _table(raw, section).pop(name, None)


def _build_unvalidated(raw: Mapping[str, Any], kinds: Mapping[str, type[FrozenConfig]]) -> dict[str, FrozenConfig]:
    """Return the sections of `raw` with defaults filled in and nothing checked."""
    return {
        section: kind.model_construct(**{name: value for name, value in _table(raw, section).items() if name in kind.model_fields})
        for section, kind in kinds.items()
    }


def _table(raw: Mapping[str, Any], section: str) -> dict[str, Any]:
    table = raw.get(section)
    return table if isinstance(table, dict) else {}


def _default(kind: type[FrozenConfig], name: str) -> Any:
    return kind.model_fields[name].get_default(call_default_factory=True)


def toml_value(value: object) -> str:
    """Return a value as TOML writes it."""
    match value:
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(toml_value(item) for item in value)}]"
        case dict():
            return f"{{{', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())}}}"
        case _:
            return repr(value)
