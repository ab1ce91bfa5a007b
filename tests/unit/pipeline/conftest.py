"""What the tests of submissions share: a server of Kubeflow Pipelines, and a compiler that remembers."""

from collections.abc import Iterator

import pytest
from celebdit_testing.kfp_server import FakeKfp, kfp_server
from celebdit_testing.submissions import compiling_once


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Compile each configuration once in a test process; not beyond the module, for other modules test the compiler."""
    with compiling_once():
        yield


@pytest.fixture
def server() -> Iterator[FakeKfp]:
    with kfp_server() as fake:
        yield fake
