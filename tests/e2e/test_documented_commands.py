"""Every block of commands in the documents that can run without a cluster runs, on the smoke preset's results.

`make` is shown what it would do (`make -n`); the names that a reader replaces are replaced.
"""

import os
import re
import subprocess
import sys

import pytest
from celebdit_testing.command import Finished, celebdit
from celebdit_testing.documents import ROOT, Block, blocks

from components.ingest.sources.synthetic import write_archive
from pipeline.services import Services

pytestmark = [pytest.mark.e2e, pytest.mark.documents, pytest.mark.timeout(1200)]

RUNNABLE = [block for block in blocks("sh", "python") if not block.info]


@pytest.fixture(scope="module")
def reader(first_run: Finished, second_run: Finished, embedded: Services, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who has run the demo, here on the smoke preset: programs, images, and a promoted version."""
    model = ("registry.model_name=celebdit-demo",)
    for arguments in (("run", "smoke", *model), ("models", "promote", "1", "--model", "celebdit-demo", "--reason", "the first")):
        done = celebdit(*arguments, home=embedded.home)
        assert done.code == 0, done.err
    home = tmp_path_factory.mktemp("reader")
    write_archive(home / "photos.zip", count=8, seed=5, image_px=64)
    programs = home / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, command in {"celebdit": f"{sys.executable} -m pipeline.cli", "python": sys.executable, "make": f"make -n -C {ROOT}"}.items():
        path = os.environ["PATH"]
        (programs / name).write_text(f'#!/bin/sh\nPATH="{path}" exec {command} "$@"\n')
        (programs / name).chmod(0o755)
    (table,) = (embedded.home / "s3").glob(f"**/{first_run.json['dataset']['digest']}/manifest.parquet")
    (home / "manifest.parquet").write_bytes(table.read_bytes())
    return {
        "HOME": str(home),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CELEBDIT_HOME": str(embedded.home),
        "RUN_KEY": first_run.json["run_key"],
        "OTHER_RUN_KEY": second_run.json["run_key"],
        "STEP": "3",
    }


@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: block.name)
def test_a_documented_block_runs(block: Block, reader: dict[str, str]) -> None:
    script = re.sub(r"\b(OTHER_RUN_KEY|RUN_KEY|STEP)\b", lambda name: reader[name[0]], block.text)
    shell = ["python", "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*shell, script],
        cwd=reader["HOME"],
        env={**os.environ, **reader, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{block.name}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
