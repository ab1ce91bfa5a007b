"""What all tests of the evaluate step share: the embedded servers, and drawn faces in a dataset."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.evaluations import drawn_faces, environment_of

from components.manifests import DatasetManifest
from pipeline.services import Endpoints, Services


@pytest.fixture(scope="module")
def environment(embedded: Services) -> Iterator[Endpoints]:
    with environment_of(embedded) as endpoints:
        yield endpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def dataset(environment: Endpoints, folder: Path, request: pytest.FixtureRequest) -> DatasetManifest:
    """In the store that a module's tests use, which its `PART` names."""
    return drawn_faces(environment, folder, part=getattr(request.module, "PART", "evaluations"))
