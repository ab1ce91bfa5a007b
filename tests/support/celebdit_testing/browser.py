"""A real browser for what people see: Debian's Chromium, without a window, driven by playwright."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = "chromium"
_SETTINGS = {"mlflow.assistant.panelOpen_v1": "false", "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}


def chromium_or_skip() -> str:
    """Return the browser's path, or skip and say why it is not here."""
    executable = shutil.which(CHROMIUM)
    if executable is None:
        may = os.geteuid() == 0 and shutil.which("apt-get") is not None
        why = "apt-get could not install it" if may else "only root on Debian may install it: apt-get install chromium"
        pytest.skip(f"no {CHROMIUM} on this machine ({why})")
    answer = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode != 0:
        pytest.skip(f"{executable} does not start: {(answer.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return executable


@contextmanager
def browser_page(executable: str, *, width: int = 1400, height: int = 1000) -> "Iterator[object]":
    """Yield a page of a fresh browser that talks to this machine alone."""
    from playwright.sync_api import sync_playwright

    script = "".join(f"localStorage.setItem('{key}', '{value}');" for key, value in _SETTINGS.items())
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, headless=True, args=arguments, viewport={"width": width, "height": height}
        )
        context.set_default_timeout(60_000)
        context.add_init_script(script)
        try:
            yield context.new_page()
        finally:
            context.close()
