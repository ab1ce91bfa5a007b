"""Steps that write the same to MLflow at the same moment: all succeed, whatever the database says to the second one."""

from pathlib import Path

import pytest
from celebdit_testing.concurrent_writes import WRITES
from celebdit_testing.registered import registry_context

from pipeline.services import Endpoints, Services

_TURNS = 4


@pytest.mark.parametrize("write", WRITES)
def test_callers_that_write_the_same_at_once_all_succeed(write: str, embedded: Services, endpoints: Endpoints, tmp_path: Path) -> None:
    context = registry_context(endpoints, tmp_path)
    for turn in range(_TURNS):
        WRITES[write](context, turn)
