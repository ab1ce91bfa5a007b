"""What a refusal of an evaluation tells the user to run."""

import shlex

import pytest
from celebdit_testing.recipes import dataset_manifest

from pipeline.choosing.scores import ingest_command
from pipeline.commands.ingest import ingest


@pytest.mark.parametrize("source", ["synthetic://", "/data/my faces/a.zip"])
def test_the_command_that_ingests_a_dataset_again_is_one_that_ingest_accepts(source: str) -> None:
    dataset = dataset_manifest(source=source, licence="CC BY 4.0", image_px=32)
    program, command, *arguments = shlex.split(ingest_command(dataset))
    assert (program, command) == ("celebdit", "ingest")
    parsed = ingest.make_context("ingest", arguments).params
    named = {name: parsed[name] for name in ("source", "name", "image_px", "licence", "overrides")}
    assert named == {"source": source, "name": dataset.name, "image_px": 32, "licence": "CC BY 4.0", "overrides": ()}
