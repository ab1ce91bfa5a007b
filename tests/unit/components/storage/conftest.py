"""A proxy in front of a real object store, which answers in its place what a test says."""

from collections.abc import Iterator

import pytest
from celebdit_testing.faults import Proxy, fault_proxy


@pytest.fixture(scope="module")
def running_proxy(moto_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(moto_endpoint) as running:
        yield running


@pytest.fixture
def proxy(running_proxy: Proxy) -> Iterator[Proxy]:
    """The proxy, which passes everything on until the test says otherwise, and its requests since the test began."""
    running_proxy.requests.clear()
    yield running_proxy
    running_proxy.rule, running_proxy.replacement = Proxy().rule, Proxy().replacement
