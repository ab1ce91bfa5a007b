"""The termination message of a node: JSON in the bytes that Kubernetes keeps."""

import json
from pathlib import Path

import pytest

from components.errors import TemporaryFailure
from components.train.trainjob.node import write_termination_message

_KEPT_BYTES = 12 * 1024 // 6
"""Of each of six containers in a pod."""


_TEXTS = ["a" * 9000, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 3000, "\N{GRINNING FACE}" * 3000, '"\n\x00' * 2000, "\ud800" * 3000]


@pytest.mark.parametrize("text", _TEXTS)
@pytest.mark.parametrize("of", [{"message"}, {"hint"}, {"message", "hint"}])
def test_a_message_of_any_text_fits_and_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, of: set[str]) -> None:
    monkeypatch.setenv("CELEBDIT_LAST_WORDS", str(tmp_path / "words"))
    write_termination_message(TemporaryFailure(text if "message" in of else "it failed", hint=text if "hint" in of else "wait"))
    data = (tmp_path / "words").read_bytes()
    assert _KEPT_BYTES // 2 < len(data) <= _KEPT_BYTES
    facts = json.loads(data.decode())
    assert facts["exit_code"] == TemporaryFailure.exit_code
    shown = text.encode(errors="replace").decode()
    for name, short in (("message", "it failed"), ("hint", "wait")):
        assert facts[name].startswith(shown[:100]) if name in of else facts[name] == short


def test_secrets_in_the_hint_are_masked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELEBDIT_LAST_WORDS", str(tmp_path / "words"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key-0123")
    write_termination_message(TemporaryFailure("it failed with a-very-secret-key-0123", hint="try a-very-secret-key-0123"))
    assert "a-very-secret" not in (tmp_path / "words").read_text()
