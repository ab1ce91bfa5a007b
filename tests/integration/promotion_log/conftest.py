"""A registry on the embedded servers, and a model of its own for each test."""

from pathlib import Path

import pytest
from celebdit_testing.registered import registry_context

from components.registry.promotions.changes import PromotionChanges
from components.runtime.context import StepContext
from pipeline.services import Endpoints


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of its own for each test."""
    return str(request.node.name).removeprefix("test_").replace("[", "-").replace("]", "")[:100]


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = PromotionChanges.__init__.__kwdefaults__
    assert "quiet_s" in defaults
    monkeypatch.setattr(PromotionChanges.__init__, "__kwdefaults__", {**defaults, "quiet_s": 0.3})
