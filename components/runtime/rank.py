"""One rank of a distributed step.

Promises: a rank ends with the agent that started it and with its run, records why it failed for `components/runtime/launch.py`, and never
waits for other ranks after a failure. What a rank computes is in the step's own `worker.py`.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from components.errors import BadInput, Failure
from components.process_settings import lifeline_path, log_level
from components.runtime.context import StepContext
from components.runtime.events import Events
from components.runtime.logs import configure_logging
from components.runtime.rank_failures import FAILURES, record_failure, record_start
from components.runtime.redact import redactor
from components.settings import Settings
from components.system.disk import full_disk_is_named
from components.system.lifeline import watch
from components.system.process import die_with_parent
from model.distributed import World


@dataclass(frozen=True)
class Rank:
    """The context of a rank, its place among the others, and the request to stop."""

    context: StepContext
    world: World
    stop_requested: threading.Event

    def device(self, kind: str) -> torch.device:
        """Return this rank's device.

        Raises:
            BadInput: if CUDA is requested and there are not enough devices.
        """
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if kind == "cpu" or (kind == "auto" and not available):
            return torch.device("cpu")
        if self.world.local_rank >= available:
            raise BadInput(
                f"resources.processes asks for GPU {self.world.local_rank + 1}, this machine has {available}",
                hint="lower resources.processes, or set resources.device=cpu",
            )
        torch.cuda.set_device(self.world.local_rank)
        return torch.device("cuda", self.world.local_rank)


def worker_main(step: str, body: Callable[[Path, Rank], None]) -> None:
    """Run `body(spec path, rank)` in a process that torchrun started with that path as its argument."""
    stop_requested = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):  # torchrun passes on the signal that it gets
        signal.signal(number, lambda number, frame: stop_requested.set())
    die_with_parent()
    if (lifeline := lifeline_path()) is not None:
        watch(lifeline)
    spec_path = Path(sys.argv[1])
    record_start(spec_path.parent / FAILURES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        settings = Settings.from_environment()
        world = World(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            rendezvous=settings.rendezvous,
        )
        events = Events(step, settings.events_path, redact=redactor())
        level = log_level() or logging.INFO
        configure_logging(level, role=f"rank {world.rank}", events=events if settings.events_path and world.is_first else None)
        context = StepContext(settings=settings, events=events)
        with full_disk_is_named(settings.work_dir):
            body(spec_path, Rank(context=context, world=world, stop_requested=stop_requested))
    except BaseException as error:
        record_failure(spec_path.parent / FAILURES, error)
        sys.stdout.flush()
        sys.stderr.flush()
        # A rank that failed must not wait for others in the teardown of its process group.
        os._exit(Failure.of(error).exit_code)
