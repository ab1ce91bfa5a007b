"""Which network features are taken from, and its weights: a part of the `evaluation` section, which the train step gets alone.

Needs no PyTorch.
"""

from typing import Annotated, Protocol

from model.frozen_config import FrozenConfig, TextForm

Sha256 = Annotated[str, TextForm(r"[0-9a-f]{64}", example="6726825d0af5...9fb9129b2, 64 hexadecimal digits in lower case")]


class ExtractorChoice(Protocol):
    """What the choice of an extractor consists of; bounds are in `components/evaluate/config.py`."""

    @property
    def extractor(self) -> str: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def weights_sha256(self) -> str | None: ...


class FeaturesConfig(FrozenConfig):
    """The extractor of a step that has no `evaluation` section; its fields are those of that section, where they are validated."""

    extractor: str
    weights: str | None = None
    weights_sha256: str | None = None

    @classmethod
    def of(cls, choice: ExtractorChoice) -> "FeaturesConfig":
        """Return the extractor of `choice` without what else it has."""
        return cls(extractor=choice.extractor, weights=choice.weights, weights_sha256=choice.weights_sha256)
