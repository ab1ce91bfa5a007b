"""What a refusal of an evaluation tells the user to run."""

import shlex

import pytest
from celebdit_testing.recipes import dataset_manifest

from pipeline.choosing.scores import ingest_command
from pipeline.commands.ingest import ingest
from pipeline.config import load_config, load_data


@pytest.mark.parametrize("source", ["synthetic://", "/data/my faces/a.zip"])
def test_the_command_that_ingests_a_dataset_again_is_one_that_ingest_accepts(source: str) -> None:
    dataset = dataset_manifest(source=source, licence="CC BY 4.0", image_px=32)
    program, command, *arguments = shlex.split(ingest_command(dataset, load_config("smoke").data))
    assert (program, command) == ("celebdit", "ingest")
    parsed = ingest.make_context("ingest", arguments).params
    named = {name: parsed[name] for name in ("source", "name", "image_px", "licence", "overrides")}
    assert named == {"source": source, "name": dataset.name, "image_px": 32, "licence": "CC BY 4.0", "overrides": ()}


def test_the_command_that_ingests_a_dataset_again_has_the_settings_and_the_acceptance_that_it_was_made_with() -> None:
    data = load_config("smoke", ["data.held_out=0.25", "data.near_duplicate_bits=2"]).data
    dataset = dataset_manifest(source=data.source, name=data.name, image_px=data.image_px, licence_accepted_by="A Person")
    parsed = ingest.make_context("ingest", shlex.split(ingest_command(dataset, data))[2:]).params
    again = load_data(parsed["overrides"], changes={f"data.{name}": parsed[name] for name in ("source", "name", "image_px")})
    assert again == data.model_copy(update={"licence": "unspecified"})
    assert parsed["accepted_by"] == "A Person"
