"""A real browser, by the WebDriver protocol of chromedriver: no client library is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

_PATIENCE_S = 60.0
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)


class Browser:
    """One window. Addresses are files of this machine, and servers on it."""

    def __init__(self, driver: str, profile: Path) -> None:
        self._driver = driver
        options = {"args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"

    def open(self, page: Path | str) -> None:
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self._call(f"{self._session}/url", {"url": url})

    def evaluate(self, script: str) -> Any:
        """What this script returns."""
        return self._call(f"{self._session}/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """What was said on the console since the last call, by the page or the browser."""
        entries = self._call(f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def command(self, name: str, **parameters: Any) -> None:
        """One of the browser's own, as Emulation.setEmulatedMedia."""
        self._call(f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def close(self) -> None:
        self._call(self._session, None, "DELETE")

    def _call(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._driver + path, data, method=method)
        with urlopen(request, timeout=_PATIENCE_S) as response:
            return json.loads(response.read())["value"]


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A headless Chromium; skips on a laptop that has none, fails in CI."""
    driver = shutil.which("chromedriver")
    if driver is None:
        missing = "there is no chromedriver: install the packages chromium and chromium-driver"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    log = folder / "chromedriver.log"
    with log.open("wb") as out:
        process = subprocess.Popen([driver, "--port=0"], stdout=out, stderr=out)
    try:
        browser = Browser(f"http://127.0.0.1:{_port(log, process)}", folder / "profile")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _port(log: Path, process: subprocess.Popen[bytes]) -> int:
    """The free port that chromedriver has found, once it says so."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (said := re.search(r"started successfully on port (\d+)", log.read_text())):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"chromedriver did not start: {log.read_text()}")
        time.sleep(0.05)
    return int(said[1])
