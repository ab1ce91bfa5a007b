"""Names of runs, which are folders, names in MLflow and parts of the keys of objects."""

import pytest

from components.storage import StoreUri
from pipeline.local_runs import _RUN_ID
from pipeline.session import new_run_id


@pytest.mark.parametrize("preset", ["größe.toml", "\N{CJK UNIFIED IDEOGRAPH-4E00}.toml", "a b/My Run.toml", "---.toml", "x" * 250, "", "٣"])
def test_a_run_of_a_configuration_with_any_name_has_an_id_that_keys_may_contain(preset: str) -> None:
    run_id = new_run_id(preset)
    assert (StoreUri("bucket", "runs") / f"gate-{run_id}.html").name == f"gate-{run_id}.html"
    assert _RUN_ID.fullmatch(run_id)
    assert run_id != new_run_id(preset)
