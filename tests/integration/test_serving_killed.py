"""The trial of a version: a server that is killed, is too slow or stands behind a proxy says nothing about the version."""

import os
import signal
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest
from celebdit_testing.processes import processes_below
from celebdit_testing.registered import registered_faces, registry_context
from celebdit_testing.waiting import wait_until

from components.errors import DataRefused, TemporaryFailure
from components.registry.client import Registry
from components.registry.version_files import ModelFiles
from components.serving import local_server, package
from components.system.work_folders import WorkFolder
from pipeline.services import Endpoints, Services


@pytest.fixture
def files(embedded: Services, endpoints: Endpoints, session_folder: Path, tmp_path: Path) -> ModelFiles:
    registered_faces(embedded, session_folder / "faces")
    context = registry_context(endpoints, tmp_path)
    return Registry(context.tracking, "faces").files_of("1", context.scratch(WorkFolder.MODELS, "killed"))


def servers() -> list[psutil.Process]:
    return processes_below(os.getpid(), running="components.serving.server")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_server_that_is_killed_while_it_starts_can_be_tried_again_unless_it_crashed(files: ModelFiles, number: signal.Signals) -> None:
    before = {process.pid for process in servers()}
    hit: list[int] = []

    def kill() -> None:
        wait_until(lambda: any(process.pid not in before for process in servers()), timeout_s=60)
        (process,) = [process for process in servers() if process.pid not in before]
        process.send_signal(number)
        hit.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    expected = (TemporaryFailure, "was killed by SIGKILL") if number == signal.SIGKILL else (DataRefused, "did not start")
    with pytest.raises(expected[0], match=expected[1]):
        package.try_out(files, image_px=8)
    killer.join()
    assert hit


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["before the request", "while it draws"])
def test_a_trial_whose_server_is_killed_does_not_fail_the_version(files: ModelFiles, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {process.pid for process in servers()}
    request = package._request_image
    hit: list[int] = []

    def request_of_a_dying_server(url: str, query: object) -> bytes:
        (process,) = [process for process in servers() if process.pid not in before]
        if stage == "before the request":
            process.kill()
        else:
            process.suspend()  # it accepts the connection and never answers
            threading.Timer(0.5, process.kill).start()
        hit.append(process.pid)
        return request(url, query)

    monkeypatch.setattr(package, "_request_image", request_of_a_dying_server)
    with pytest.raises(TemporaryFailure, match="was killed by SIGKILL"):
        package.try_out(files, image_px=8)
    assert hit


def test_a_proxy_that_reaches_nothing_is_not_asked_for_this_machine(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods of a cluster behind a proxy have HTTP_PROXY, and not each has 127.0.0.1 in NO_PROXY."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib remembers the proxies of the first request
    assert package.try_out(files, image_px=16).startswith(b"\x89PNG")


def test_a_server_that_takes_too_long_can_be_tried_again(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "_READY_S", 0.0)
    with pytest.raises(TemporaryFailure, match="did not answer within 0 s"):
        package.try_out(files, image_px=8)


def test_a_version_whose_files_are_damaged_is_refused(files: ModelFiles) -> None:
    weights = files.weights.read_bytes()
    files.weights.write_bytes(weights[: len(weights) // 2])
    try:
        with pytest.raises(DataRefused, match="does not work when it is served"):
            package.try_out(files, image_px=8)
    finally:
        files.weights.write_bytes(weights)
