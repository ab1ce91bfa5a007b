"""Exit codes of errors."""

import pytest

from components.errors import BadInput, CelebditError, DataRefused, GateFailed, StorageUnavailable, TemporaryFailure, error_for_exit_code


@pytest.mark.parametrize(
    ("kind", "code"),
    [(GateFailed, 1), (BadInput, 2), (DataRefused, 3), (TemporaryFailure, 75), (StorageUnavailable, 75), (CelebditError, 70)],
)
def test_each_kind_of_error_has_its_exit_code_and_survives_another_process(kind: type[CelebditError], code: int) -> None:
    error = kind("what", hint="do this")
    assert error.exit_code == code
    rebuilt = error_for_exit_code(code, error.message, hint=error.hint)
    assert (rebuilt.exit_code, rebuilt.message, rebuilt.hint) == (code, "what", "do this")
