"""Names of the weights that a checkpoint holds: the raw ones and their exponential moving averages (EMAs).

Promises: one `EmaName` knows the three spellings of the same weights: in settings (`0.1`, `classic`, `none`), as the tensor group of a
checkpoint (`ema-0.1`, `ema-classic`, `weights`) and as that group's file. Imports neither PyTorch nor NumPy, because configuration and
launchers use it; the averages themselves are in `ema_profiles.py`.
"""

from dataclasses import dataclass

_GROUP_PREFIX = "ema-"
_RAW_GROUP = "weights"
_FILE_SUFFIX = ".safetensors"
SIGMA_REL_LIMIT = 12**-0.5
"""Relative width of the widest power-function profile, gamma = 0 (Karras et al. 2024, equation 123)."""


@dataclass(frozen=True)
class EmaName:
    """The name of an EMA, or of the raw weights, as settings spell it."""

    setting: str

    @classmethod
    def of_width(cls, sigma_rel: float) -> "EmaName":
        """Return the name of the power-function EMA of relative width `sigma_rel`."""
        return cls(f"{sigma_rel:g}")

    @classmethod
    def from_group(cls, group: str) -> "EmaName | None":
        """Return the name of a checkpoint's tensor group, or None if the group holds no weights (the optimizer's moments)."""
        if group == _RAW_GROUP:
            return RAW_WEIGHTS
        return cls(group.removeprefix(_GROUP_PREFIX)) if group.startswith(_GROUP_PREFIX) else None

    @classmethod
    def from_file(cls, file: str) -> "EmaName | None":
        """Return the name of the weights in a checkpoint's file, or None if it holds none."""
        return cls.from_group(file.removesuffix(_FILE_SUFFIX)) if file.endswith(_FILE_SUFFIX) else None

    @property
    def is_raw(self) -> bool:
        """Whether these are the weights that training updates, not an average of them."""
        return self == RAW_WEIGHTS

    @property
    def group(self) -> str:
        """The tensor group in a checkpoint."""
        return _RAW_GROUP if self.is_raw else f"{_GROUP_PREFIX}{self.setting}"

    @property
    def file(self) -> str:
        """The file of a checkpoint that holds the group."""
        return f"{self.group}{_FILE_SUFFIX}"

    @property
    def sigma_rel(self) -> float | None:
        """The relative width of a power-function EMA; None for the classic one and the raw weights."""
        try:
            return float(self.setting)
        except ValueError:
            return None

    def __str__(self) -> str:
        return self.setting


RAW_WEIGHTS = EmaName("none")
CLASSIC_EMA = EmaName("classic")


def check_sigma_rel(sigma_rel: float) -> None:
    """Check that a power-function profile of relative width `sigma_rel` exists.

    Raises:
        ValueError: naming the bounds.
    """
    if not 0 < sigma_rel < SIGMA_REL_LIMIT:
        raise ValueError(f"sigma_rel {sigma_rel:g} must lie between 0 and {SIGMA_REL_LIMIT:.4f}")
