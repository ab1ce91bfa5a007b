"""One node of a training on several: `python -m components.train.trainjob.node s3://.../spec.json`, started by a TrainJob.

Promises: the node's ranks find each other through the PET_ variables that Kubeflow Trainer sets; the reason of a failure is written to
the container's termination message, as one JSON object. The ranks run `worker.py`.
"""

import json
import sys
from contextlib import suppress
from dataclasses import asdict

from components.errors import BadInput, CelebditError, Failure
from components.runtime.context import step
from components.runtime.launch import launch
from components.runtime.redact import redactor
from components.settings import Settings, termination_message_path
from components.storage import StoreUri
from components.train.spec import TrainSpec
from components.train.trainjob.lease import LeaseWatch

_MAX_MESSAGE_BYTES = 3500


def main() -> None:
    """Fetch the spec, run this node's ranks and leave with the exit code of what happened."""
    try:
        Settings.from_environment()  # `step` below reports the error and ends the process
    except CelebditError as error:
        write_termination_message(error)
    with step("train") as context:
        try:
            if len(sys.argv) != 2:
                raise BadInput("this module takes one argument, the location of a training's spec")
            uri = StoreUri.parse(sys.argv[1])
            spec = TrainSpec.parse(context.store.get_bytes(uri), origin=str(uri))
            path = context.run_folder(spec.run_key) / "spec.json"
            spec.dump(path)
            LeaseWatch(context.store, context.layout.run(spec.run_key).leases).start()
            asked = spec.resources
            launch(
                "components.train.worker",
                path,
                work_dir=context.settings.work_dir,
                processes=asked.processes,
                threads=asked.threads,
                standalone=False,
            )
        except Exception as error:
            write_termination_message(error)
            raise


def write_termination_message(error: Exception) -> None:
    """Write why this node failed to the termination message; Kubernetes keeps at most 4 KiB of it."""
    failure = Failure.of(error)
    facts = {**asdict(failure), "message": redactor()(failure.message)[: _MAX_MESSAGE_BYTES // 2]}
    with suppress(OSError):
        termination_message_path().write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
