"""The two runs of the smoke preset that the end-to-end tests look at, made once for all test processes.

Canaries are planted as secrets in the first one's environment, it is started in a folder of Python files that leave a mark when they are
imported, and the command lines and environments of all processes are watched while it runs. The second one trains longer with another
learning rate, and its gate asks for more than it can give.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from celebdit_testing.command import Finished, celebdit
from celebdit_testing.traps import Traps

from components.system.locks import lock

PLANTED = {"MLFLOW_TRACKING_PASSWORD": "canary-mlflow-3c5f01", "CELEBDIT_KFP_TOKEN": "canary-kfp-7a9b22", "AWS_SESSION_TOKEN": ""}

OTHER = (
    "training.total_steps=24",
    "training.score_every_steps=12",
    "training.score_images=16",
    "optimizer.lr_peak=0.004",
    'gate.at_most."eval/fd_randconv_16"=1e-6',
    "registry.model_name=celebdit-never",
)


@dataclass(frozen=True)
class FirstRun:
    """What the run printed, every command line that was seen meanwhile, and those of processes with a secret that only a command needs."""

    finished: Finished
    command_lines: list[str]
    holders: list[str]
    marks: list[str]
    """Modules of the folder that were imported."""
    temporary_seen: list[str]
    """What appeared in the temporary folder, and one level below."""
    temporary_left: list[str]
    """What was left there."""


class CommandLines(threading.Thread):
    """Collects the command lines of all processes until `stop` is called."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self.command_lines = set[str]()
        self.holders = set[str]()
        """Command lines of processes with the token of Kubeflow."""

    def run(self) -> None:
        while not self._done.wait(0.5):
            for process in psutil.process_iter(["cmdline", "environ"]):
                line = " ".join(process.info["cmdline"] or [])
                self.command_lines.add(line)
                if PLANTED["CELEBDIT_KFP_TOKEN"] in (process.info["environ"] or {}).values():
                    self.holders.add(line)

    def stop(self) -> list[str]:
        self._done.set()
        self.join()
        return sorted(self.command_lines)


class Entries(CommandLines):
    """Collects what lies in a folder and one level below until it is told to stop."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def run(self) -> None:
        while not self._done.wait(0.2):
            self.command_lines |= {str(path.relative_to(self._folder)) for pattern in ("*", "*/*") for path in self._folder.glob(pattern)}


def made_once(cache_file: Path, make: Callable[[], str]) -> str:
    """Return the result of `make`, which the first test process calls; `cache_file` holds it for the others."""
    with lock(cache_file.with_suffix(".lock")):
        if not cache_file.exists():
            cache_file.write_text(make())
        return cache_file.read_text()


def first_run_of(home: Path, cache_file: Path) -> FirstRun:
    """Run the preset in `home`, or read the result of another test process from `cache_file`."""

    def make() -> str:
        watch, traps = CommandLines(), Traps(cache_file.parent / "images")
        traps.assert_live()
        with TemporaryDirectory(prefix="t") as temporary:
            folders = Entries(Path(temporary))
            watch.start()
            folders.start()
            finished = celebdit("run", "smoke", "--json", home=home, folder=traps.folder, TMPDIR=temporary, **PLANTED)
            temporaries = {"temporary_seen": folders.stop(), "temporary_left": sorted(path.name for path in Path(temporary).iterdir())}
        command_lines = watch.stop()
        seen = {"command_lines": command_lines, "holders": sorted(watch.holders), "marks": traps.marks()}
        return json.dumps({"finished": asdict(finished), **seen, **temporaries})

    raw = json.loads(made_once(cache_file, make))
    return FirstRun(**{**raw, "finished": Finished(**raw["finished"])})


def second_run_of(home: Path, cache_file: Path) -> Finished:
    """Run the preset in `home` with other settings, or read the result of another test process from `cache_file`."""
    return Finished(**json.loads(made_once(cache_file, lambda: json.dumps(asdict(celebdit("run", "smoke", *OTHER, "--json", home=home))))))
