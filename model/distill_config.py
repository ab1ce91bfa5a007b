"""The `distill` section, and what it resolves to: a student of few sampling steps learns from the weights of a finished training."""

from typing import Annotated

from pydantic import Field

from model.canonical import JsonObject
from model.frozen_config import FrozenConfig, TextForm


class DistillConfig(FrozenConfig):
    """Whether to train a student of few sampling steps from a finished training, by moment matching (Salimans et al. 2024)."""

    teacher: Annotated[str, TextForm(r"[0-9a-f]{16}(@[0-9]{1,12})?", "53e830b04a95c9d2 or 53e830b04a95c9d2@900")] | None = Field(
        None,
        description="run key of the finished training that is distilled, which has the same network and diffusion, or RUN_KEY@STEP. "
        "Default: none, the network is trained from its initial weights",
    )
    steps: int = Field(4, ge=1, le=64, description="steps in which the student draws an image; `sampling.num_steps` must be the same")
    teacher_ema: str | None = Field(
        None, description="average of the teacher's weights to distil, like '0.1'. Default: the one that the teacher samples with"
    )

    @property
    def teacher_run(self) -> str:
        """The run key of the teacher."""
        assert self.teacher is not None, "read where a teacher is configured"
        return self.teacher.partition("@")[0]

    @property
    def teacher_step(self) -> int | None:
        """The step of the teacher's checkpoint; None: its last one."""
        step = (self.teacher or "").partition("@")[2]
        return int(step) if step else None


class Teacher(FrozenConfig):
    """The weights that a student learns from, by their origin and their content."""

    run_key: str
    step: int
    ema: str
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def summary(self) -> str:
        """Run, step and average in a few words."""
        return f"{self.run_key}@{self.step}, EMA {self.ema}"


def distillation_identity(distill: DistillConfig | None, teacher: Teacher | None) -> JsonObject:
    """Return what a distillation adds to the identity of a run; nothing for a training from initial weights.

    Raises:
        ValueError: if the teacher was not looked up yet, which the identity depends on.
    """
    if distill is None:
        return {}
    if teacher is None:
        raise ValueError(f"distill.teacher {distill.teacher} was not looked up: a student has no identity without its teacher's weights")
    return {"distill": {"steps": distill.steps, "teacher": teacher.model_dump(mode="json")}}
