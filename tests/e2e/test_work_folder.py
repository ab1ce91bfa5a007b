"""The work folder of a complete run."""

import pytest
from celebdit_testing.command import Finished

from components.system.work_folders import WorkFolder
from pipeline.services import Services


@pytest.mark.e2e
def test_every_folder_in_it_has_a_name_that_steps_share(first_run: Finished, embedded: Services) -> None:
    assert first_run.code == 0, first_run.err
    names = {entry.name for entry in (embedded.home / "work").iterdir()}
    assert {WorkFolder.RUNS, WorkFolder.PACKS, WorkFolder.EVALUATIONS, WorkFolder.INGEST} <= names
    assert names <= set(WorkFolder)
