"""The ranks of one node: fetch the spec, launch them, and report why they failed. The entry point is `node.py`, which loads this late."""

from collections.abc import Sequence

from components.errors import BadInput, CelebditError
from components.runtime.context import step
from components.runtime.launch import launch
from components.runtime.signal_flag import SignalFlag
from components.settings import Settings
from components.storage import StoreUri
from components.train.spec import TrainSpec
from components.train.trainjob.lease import LeaseWatch, require_not_ended
from components.train.trainjob.node import write_termination_message


def run_node(arguments: Sequence[str]) -> None:
    """Fetch the spec at the location in `arguments`, run this node's ranks and leave with the exit code of what happened."""
    try:
        Settings.from_environment()  # `step` below reports the error and ends the process
    except CelebditError as error:
        write_termination_message(error)
    with step("train") as context:
        try:
            if len(arguments) != 2 or not arguments[1].isdecimal():
                raise BadInput(
                    "this module takes two arguments: the location of a training's spec, and the seconds that its ranks get to stop"
                )
            uri, grace_s = StoreUri.parse(arguments[0]), float(arguments[1])
            spec = TrainSpec.parse(context.store.get_bytes(uri), origin=str(uri))
            path = context.run_folder(spec.run_key) / "spec.json"
            spec.dump(path)
            leases = context.layout.run(spec.run_key).leases
            require_not_ended(context.store, leases, spec.attempt)
            LeaseWatch(context.store, leases).start()
        except Exception as error:
            write_termination_message(error)
            raise
        resources = spec.resources
        with SignalFlag() as signals:  # outside of `launch` too, until the reason is written
            try:
                launch(
                    "components.train.worker",
                    path,
                    work_dir=context.settings.work_dir,
                    processes=resources.processes,
                    threads=resources.threads,
                    standalone=False,
                    node_timeout_s=resources.node_timeout_s,
                    grace_s=grace_s,
                    signals=signals,
                )
            except Exception as error:
                write_termination_message(error)
                raise
