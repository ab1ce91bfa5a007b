"""Fixtures that several packages share: S3 servers, the embedded pair of servers, and the environment that reaches them."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.command import Finished
from celebdit_testing.first_run import FirstRun, first_run_of, second_run_of
from celebdit_testing.process_state import changes, process_state
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY, moto_server, rclone_server
from hypothesis import settings

from components.storage import ObjectStore, StoreUri, connect
from pipeline.services import Endpoints, Services

# One thread per process: with more, test processes on a small machine fight for its cores and become many times slower.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
for variable in ("CELEBDIT_STORE", "MLFLOW_TRACKING_URI", "CELEBDIT_HOME", "MLFLOW_RUN_ID", "CELEBDIT_EVENTS"):
    os.environ.pop(variable, None)
# The same values in every run, so that a run says something of the change that it is made for; CELEBDIT_FUZZ=1 tries others.
settings.register_profile("fixed", derandomize=True)
if not os.environ.get("CELEBDIT_FUZZ"):
    settings.load_profile("fixed")
# A shell that starts the tests in the background ignores these signals for them, and so would every command that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


_LONGEST = (
    "e2e/test_documented_commands.py",
    "e2e/test_pipeline.py",
    "fault/test_training_servers.py",
    "fault/test_training_kills.py",
    "fault/test_run_killed.py",
    "fault/test_nodes_in_namespaces.py",
    "fault/test_training_launcher.py",
)
"""The files that take longest, the longest one first: what begins late ends late, with the other test processes idle."""

_WAITS_FOR_A_RUN = ("e2e/test_compare.py", "e2e/test_plan.py", "e2e/test_secrets.py", "e2e/test_work_folder.py")
"""Files whose first test waits for the run that another one of the end-to-end files makes: a test process would wait with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, and let no test process wait for another one's run."""
    tests = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(tests).as_posix()
        if path in _LONGEST:
            return _LONGEST.index(path)
        first = len(_LONGEST)
        return first if path.startswith(("fault/", "integration/")) else first + 1 if path in _WAITS_FOR_A_RUN else first + 2

    items.sort(key=rank)


@pytest.fixture(autouse=True, scope="module")
def same_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a file of tests that leaves the process changed: commands of the tests after it would use other folders and servers."""
    before, environment = process_state(), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)  # the command line, run in this process, sets its own
    changed = changes(before, process_state())
    for name in changed:
        os.environ.pop(name, None)
        os.environ.update({name: environment[name]} if name in environment else {})
    assert not changed, f"{request.node.name} leaves {', '.join(changed)} changed; for variables: use `celebdit_here` or `no_endpoints`"


@pytest.fixture(scope="session")
def s3_credentials() -> Iterator[None]:
    """Credentials for the test servers, in the environment as in a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield


@pytest.fixture(scope="session")
def rclone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where rclone keeps the objects, as plain files below a folder per bucket."""
    return tmp_path_factory.mktemp("rclone")


@pytest.fixture(scope="session")
def rclone_endpoint(rclone_folder: Path, s3_credentials: None) -> Iterator[str]:
    with rclone_server(rclone_folder) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def moto_endpoint(s3_credentials: None) -> Iterator[str]:
    with moto_server() as endpoint:
        connect(endpoint).client.create_bucket(Bucket="bucket")
        yield endpoint


@pytest.fixture
def moto_virtual_endpoint(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The moto server under a name whose subdomains are its buckets, as on AWS: `http://bucket.s3.test`."""
    find = socket.getaddrinfo

    def resolve(host: str | None, *others: Any, **named: Any) -> Any:
        return find("127.0.0.1" if host is not None and f".{host}".endswith(".s3.test") else host, *others, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "virtual")
    return moto_endpoint.replace("127.0.0.1", "s3.test")


@pytest.fixture(params=["rclone", "moto", "moto_virtual"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """An object store on each kind of server, and with each style of addresses."""
    return connect(request.getfixturevalue(f"{request.param}_endpoint"), deadline_s=5.0)


@pytest.fixture
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUri:
    """A location of its own for each test."""
    return StoreUri("bucket", "tests") / f"{abs(hash(request.node.nodeid)):x}" / tmp_path.name


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def embedded(session_folder: Path) -> Iterator[Services]:
    """The embedded S3 and MLflow servers, as a laptop's user has them: one pair, which the last test process stops.

    MLflow's token is in the environment of this process, as after `celebdit services env`.
    """
    services = Services(session_folder / "home" / ".celebdit")
    with services.use(what="tests"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_TOKEN", services.wait().environment["MLFLOW_TRACKING_TOKEN"])
        yield services


@pytest.fixture(scope="session")
def watched_first_run(embedded: Services, session_folder: Path) -> FirstRun:
    """A finished run of the smoke preset on the embedded servers, and what could be seen while it ran."""
    return first_run_of(embedded.home, session_folder / "first-run.json")


@pytest.fixture(scope="session")
def first_run(watched_first_run: FirstRun) -> Finished:
    """What that run printed."""
    return watched_first_run.finished


@pytest.fixture(scope="session")
def second_run(first_run: Finished, embedded: Services, session_folder: Path) -> Finished:
    """What a run with other settings printed, whose gate fails."""
    return second_run_of(embedded.home, session_folder / "second-run.json")


@pytest.fixture
def no_endpoints() -> Iterator[None]:
    """The environment of a shell that names no servers, and as it was before after the test, whatever a command made of it."""
    before = dict(os.environ)
    for name in ("CELEBDIT_STORE", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def endpoints(embedded: Services, monkeypatch: pytest.MonkeyPatch) -> Endpoints:
    """The embedded servers, with this process's environment pointing at them."""
    servers = embedded.wait()
    for name, value in servers.environment.items():
        monkeypatch.setenv(name, value)
    return servers
