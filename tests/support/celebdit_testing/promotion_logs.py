"""A registered model with promotions, and what its promotion log and its aliases are then."""

from typing import Any

import pytest
from celebdit_testing.registered import bare_versions

from components.errors import BadInput
from components.registry.client import Registry
from components.runtime.context import StepContext
from pipeline.promotion_view import history_json, history_lines, problem_lines


def promoted(context: StepContext, name: str, *versions: str, count: int = 3) -> Registry:
    registry = bare_versions(context, name, count)
    for version in versions:
        registry.promote(version, reason=f"promotion of {version}", by="ann")
    return registry


def history(registry: Registry) -> dict[str, Any]:
    """What `models history --json` prints, and as `text` what it shows."""
    state = registry.described_state(take_over_as="reader")
    assert state is not None
    return {**history_json(state), "text": "\n".join([*history_lines(state), *problem_lines(state)])}


def refusal(registry: Registry) -> str:
    """What a rollback says that is refused, which must leave everything as it is."""
    before = written(registry)
    with pytest.raises(BadInput) as refused:
        registry.rollback(reason="dark corners", by="ann")
    assert written(registry) == before
    return f"{refused.value.message}\n{refused.value.hint}"


def written(registry: Registry) -> tuple[dict[str, str], dict[str, str]]:
    model = registry.tracking.client.get_registered_model(registry.name)
    return {key: value for key, value in model.tags.items() if key.startswith("celebdit.move.")}, dict(model.aliases)
