"""One node of a training on several: `python -m components.train.trainjob.node s3://.../spec.json`, started by a TrainJob.

Promises: the node's ranks find each other through the PET_ variables that Kubeflow Trainer sets; why the node failed is written where
Kubernetes keeps a container's last words, as one JSON object. What the ranks compute is in `worker.py`.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from components.errors import EXIT_BUG, BadInput, CelebditError
from components.runtime.context import step
from components.runtime.launch import launch
from components.runtime.redact import redactor
from components.settings import Settings
from components.storage import StoreUri
from components.train.spec import TrainSpec
from components.train.trainjob.lease import LeaseWatch

LAST_WORDS = "CELEBDIT_LAST_WORDS"
_LAST_WORDS_FILE = "/dev/termination-log"
_MOST_BYTES = 3500


def main() -> None:
    """Fetch the spec, run this node's ranks and leave with the exit code of what happened."""
    try:
        Settings.from_environment(os.environ)  # the frame below tells of it and ends the process
    except CelebditError as error:
        leave_word(error)
    with step("train") as context:
        try:
            if len(sys.argv) != 2:
                raise BadInput("this module takes one argument, the location of a training's spec")
            uri = StoreUri.parse(sys.argv[1])
            spec = TrainSpec.parse(context.store.get_bytes(uri), origin=str(uri))
            path = context.scratch("runs", spec.run_key) / "spec.json"
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
            leave_word(error)
            raise


def leave_word(error: Exception) -> None:
    """Write down why this node failed; Kubernetes keeps at most 4 KiB of it."""
    expected = isinstance(error, CelebditError)
    redact = redactor(os.environ)
    facts = {
        "kind": type(error).__name__,
        "exit_code": error.exit_code if isinstance(error, CelebditError) else EXIT_BUG,
        "message": redact(error.message if isinstance(error, CelebditError) else f"{type(error).__name__}: {error}")[: _MOST_BYTES // 2],
        "hint": error.hint if expected else None,  # type: ignore[attr-defined]
    }
    with suppress(OSError):
        Path(os.environ.get(LAST_WORDS, _LAST_WORDS_FILE)).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
