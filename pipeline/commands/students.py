"""What commands say about weights of a student of few steps: its estimates of the image are samples, for the steps of its own sampler."""

from typing import TYPE_CHECKING

from components.errors import BadInput
from components.reports.plural import plural
from pipeline.commands.options import print_line

if TYPE_CHECKING:
    from components.weights.find import ResolvedWeights
    from model.config import SamplingConfig


def refuse_guidance(weights: "ResolvedWeights", *, role: str) -> None:
    """Refuse a student in a guidance, as the one that is guided or as its guide: `role` is its option or argument.

    Raises:
        BadInput: if `weights` are those of a student.
    """
    if weights.is_student:
        raise BadInput(
            f"{role} {weights.source} is a distilled student: its estimate of the image is a sample, and guidance needs a mean",
            hint="draw from a student without --guide, or guide its teacher",
        )


def warn_of_other_steps(own: "SamplingConfig", sampling: "SamplingConfig") -> None:
    """Print a line if a student with the settings `own` is drawn from in other steps."""
    if problem := _other_steps(own, sampling):
        print_line(f"warning: {problem}")


def refuse_to_register_other_steps(own: "SamplingConfig", sampling: "SamplingConfig") -> None:
    """Refuse to make other steps those that a version of a student draws in by itself.

    Raises:
        BadInput: if `sampling` has not the sampler and steps of the student's `own`.
    """
    if problem := _other_steps(own, sampling):
        raise BadInput(
            f"--register: {problem}", hint="leave out --sampler and --steps: a version of a student draws in its own steps alone"
        )


def _other_steps(own: "SamplingConfig", sampling: "SamplingConfig") -> str | None:
    if (own.sampler, own.num_steps) == (sampling.sampler, sampling.num_steps):
        return None
    return (
        f"this student was trained for {own.sampler} with {plural(own.num_steps, 'step')}, "
        f"{sampling.sampler} with {plural(sampling.num_steps, 'step')} gives worse images"
    )
