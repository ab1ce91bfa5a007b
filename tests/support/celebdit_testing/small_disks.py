"""Small disks for tests: a tmpfs in a mount namespace, which ends with the shell that runs in it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_NAMESPACE = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


def cannot_mount() -> str:
    """Return why this machine cannot give a shell a disk of its own, or nothing if it can."""
    if shutil.which("unshare") is None:
        return "needs unshare (util-linux)"
    done = subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False)
    return f"needs a mount namespace: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Outcome:
    code: int
    seconds: float
    output: str


def on_small_disk(
    folder: Path, commands: list[tuple[str, list[str]]], *, size_bytes: int, environment: dict[str, str], files: int | None = None
) -> list[Outcome]:
    """Mount a disk of `size_bytes`, which holds at most `files`, at `folder` and run the commands there, each after its line of shell."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_bytes}" + ("" if files is None else f",nr_inodes={files}")
    outcomes, script = folder.with_name("outcomes"), [f"mount -t tmpfs -o {options} none {folder}", f"cd {folder}"]
    outcomes.mkdir()
    for number, (before, command) in enumerate(commands):
        output = outcomes / f"{number}.txt"
        words = " ".join(f"'{word}'" for word in command)
        timed = f'{sys.executable} -c "import time; print(time.monotonic())"'
        script += [before, f"{timed} > {output}.began", f"{words} > {output} 2>&1; echo $? > {output}.code", f"{timed} > {output}.ended"]
    done = subprocess.run(
        [*_NAMESPACE, "sh", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    results = []
    for number in range(len(commands)):
        output = outcomes / f"{number}.txt"
        times = [float(Path(f"{output}.{end}").read_text()) for end in ("began", "ended")]
        results.append(Outcome(int(Path(f"{output}.code").read_text()), times[1] - times[0], output.read_text()))
    return results


def leave(folder: Path, free_bytes: int) -> str:
    """Return the line of shell that fills the disk at `folder` up to `free_bytes`."""
    filler = folder / "filler"
    return f"rm -f {filler}; head -c $(( $(df -B1 --output=avail {folder} | tail -1) - {free_bytes} )) /dev/zero > {filler} || true"
