"""Process trees of a run in miniature: the layers that a real run has, with processes of a few milliseconds in the places of the steps."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from celebdit_testing.processes import command_line
from celebdit_testing.waiting import wait_until

from components.environment import LIFELINE
from components.system.process_table import is_alive

_OWNER = """
import os, sys, time
from pathlib import Path
from components.system.guarded import Guarded
folder = Path(sys.argv[1])
with (folder / "log.txt").open("ab") as log:
    runner = Guarded([sys.executable, *sys.argv[2:]], lifeline=folder / "lifeline", environment=os.environ, output=log)
    while runner.poll() is None:
        time.sleep(0.05)
"""
_RUNNER = """
import subprocess, sys
# As kfp's local runner: through a shell, no descriptor inherited, no death signal.
subprocess.Popen(["sh", "-c", '"$0" "$@"; true', sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE).communicate()
"""
_STEP = """
import os, subprocess, sys, time
from pathlib import Path
from components.system.lifeline import watch
watch(Path(os.environ["CELEBDIT_LIFELINE"]))
own = {"start_new_session": True, "stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
rank = subprocess.Popen([sys.executable, *sys.argv[1:3], "rank"], **own)
decoder = subprocess.Popen(["cat"], env={"PATH": os.environ["PATH"]}, **own)
if sys.argv[3] == "stubborn":
    subprocess.Popen(["sh", "-c", "trap '' TERM HUP INT; sleep 600 & wait; sleep 600"], **own)
time.sleep(600)
"""
_RANK = """
import os, signal, time
from pathlib import Path
from components.system.lifeline import watch
def save(number, frame):
    time.sleep(0.5)
    Path(os.environ["CELEBDIT_LIFELINE"]).with_name("saved").touch()
    os._exit(75)
signal.signal(signal.SIGTERM, save)
watch(Path(os.environ["CELEBDIT_LIFELINE"]))
time.sleep(600)
"""


class Tree:
    """The processes of one run: `owner` (the command), guardian, runner, shell, step, rank, decoder, and what a third party started."""

    def __init__(self, folder: Path, *, stubborn: bool = True) -> None:
        self.lifeline = folder / "lifeline"
        arguments = ["-c", _RUNNER, "-c", _STEP, "-c", _RANK, "stubborn" if stubborn else "none"]
        self.owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(folder), *arguments], start_new_session=True)
        self.size = 9 if stubborn else 7
        wait_until(lambda: len(self._living_below()) == self.size - 1 and self._rank_watches(), timeout_s=20, every_s=0.05)
        self.processes = [psutil.Process(self.owner.pid), *self._living_below()]
        guardian, runner, shell, step = self.processes[1:5]
        self.parts = {"owner": self.processes[0], "guardian": guardian, "runner": runner, "shell": shell, "step": step}

    def _living_below(self) -> list[psutil.Process]:
        """Return them depth first, so that the layers come in order."""
        found: list[psutil.Process] = []
        layer = psutil.Process(self.owner.pid).children()
        while layer:
            found += layer
            layer = [child for process in layer for child in process.children()]
        return [process for process in found if is_alive(process)]

    def _rank_watches(self) -> bool:
        """Whether all have begun: a thread waits for the lifeline in the step and in the rank."""
        return sum(process.num_threads() > 1 for process in self._living_below()) >= 2

    def kill(self, *names: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to several parts as if at once: none of them lives to see that another one ended, and to end the run."""
        parts = [self.parts[name] for name in names]
        if len(parts) > 1:
            for part in parts:
                part.suspend()
            wait_until(lambda: all(part.status() == psutil.STATUS_STOPPED for part in parts))
        for part in parts:
            part.send_signal(number)

    def alive(self) -> list[str]:
        return [" ".join(command_line(process)[:3])[:60] for process in self.processes if is_alive(process)]

    def end(self) -> None:
        for process in self.processes:
            if is_alive(process):
                process.kill()
        self.owner.wait()

    def marked(self) -> int:
        """Return how many living processes have this run's lifeline in their environment."""
        count = 0
        for process in psutil.process_iter():
            try:
                count += process.environ().get(LIFELINE) == str(self.lifeline) and is_alive(process) and process.pid != os.getpid()
            except psutil.Error:
                continue
        return count
