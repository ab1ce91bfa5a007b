"""What a training is called in MLflow, what is said of it there, and how it ended; told in the background.

Promises: training never waits for MLflow, whether it is slow, away at the start or away throughout; the run is made by the launcher alone,
so there is one. `celebdit sync` tells later what could not be told.
"""

import threading
from typing import TYPE_CHECKING

from components.errors import Failure
from components.runtime.context import StepContext
from components.tracking.request_limits import limit_requests
from components.tracking.tags import TAG_LICENCE
from components.train.spec import TrainSpec

if TYPE_CHECKING:
    from components.tracking.client import Tracking

_PAUSE_S = 10.0
_LAST_TRY_S = 30.0


class Description:
    """Opens the run of a training in MLflow and closes it, trying until MLflow answers."""

    def __init__(self, context: StepContext, spec: TrainSpec) -> None:
        self._context = context
        self._spec = spec
        self._run_id: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_trying, name="description", daemon=True)

    def begin(self) -> None:
        """Start telling."""
        self._thread.start()

    def end(self, error: BaseException | None) -> None:
        """Tell how it ended; waits for MLflow only as long as its time-outs."""
        self._stop.set()
        self._thread.join(_LAST_TRY_S)
        if self._thread.is_alive():
            self._say_later("MLflow does not answer")
            return
        try:
            if self._run_id is None:
                self._run_id = describe(self._context.tracking, self._spec)
            if error is None:
                self._context.tracking.set_status(self._run_id, "FINISHED")
            else:
                self._context.tracking.close(self._run_id, error)
        except Exception as away:  # whatever MLflow's client raises must not turn a training that ended well into one that did not
            self._say_later(Failure.of(away).message)

    def _say_later(self, why: str) -> None:
        self._context.events.note(f"{why}; run `celebdit sync {self._spec.run_key}` when it is back")

    def _keep_trying(self) -> None:
        limit_requests(timeout_s=10, max_retries=1)
        told = False
        while not self._stop.is_set():
            try:
                self._run_id = describe(self._context.tracking, self._spec)
                return
            except Exception as away:
                if not told:
                    self._context.events.note(f"MLflow cannot be told of this training yet, it goes on: {away}")
                told = True
            self._stop.wait(_PAUSE_S)


def describe(tracking: "Tracking", spec: TrainSpec) -> str:
    """Say in MLflow what the training of `spec` is, mark it as running, and return the id of its run; again is harmless."""
    run_id = str(tracking.step_run("train", run_key=spec.run_key, name=f"train-{spec.run_key}").info.run_id)
    tracking.set_status(run_id, "RUNNING")
    tracking.tag(run_id, {"attempt": spec.attempt, TAG_LICENCE: spec.dataset.licence})
    network, training = spec.network, spec.training
    tracking.params(
        run_id,
        {
            "network.latent_channels": network.latent_channels,
            "network.width": network.width,
            "network.depth": network.depth,
            "network.block": network.block,
            "network.image_px": network.image_px,
            "diffusion.path": spec.diffusion.path,
            "diffusion.prediction": spec.diffusion.prediction,
            "diffusion.weighting": spec.diffusion.weighting,
            "optimizer.lr_peak": spec.optimizer.lr_peak,
            "optimizer.schedule": spec.optimizer.schedule,
            "training.batch_images": training.batch_images,
            "training.precision": training.precision,
            "training.seed": training.seed,
            "data.name": spec.dataset.name,
            "data.num_images": spec.dataset.num_images,
        },
    )
    tracking.text(run_id, spec.model_dump_json(indent=2), "config/train.json")
    tracking.dataset(run_id, spec.dataset, context="training")
    return run_id
