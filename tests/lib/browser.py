"""Chromium, driven through chromedriver by plain HTTP (W3C WebDriver)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib.support import DEADLINE

#: Seconds for a command of the browser. Starting it takes longest.
_PATIENCE = 60.0
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    "--no-proxy-server",
]


class Browser:
    """One window of a browser."""

    def __init__(self, driver: str, profile: Path, *flags: str) -> None:
        self._driver = driver
        # Without a proxy of the environment: the driver is on this host.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}", *flags], "binary": shutil.which("chromium")}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        session = self._call("POST", "/session", {"capabilities": wanted})
        self._session = f"/session/{session['sessionId']}"

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run JavaScript; return what it returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def wait_for(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true; return its value."""
        deadline = time.monotonic() + DEADLINE
        while not (value := self.run(f"return {expression}")):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {DEADLINE} s: {expression}; the page: {self.text()}")
            time.sleep(0.05)
        return value

    def text(self) -> str:
        """Return the visible text of the page."""
        return str(self.run("return document.body.innerText"))

    def complaints(self) -> list[str]:
        """Return what the console says since the last call: errors of scripts, and of the security policy."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def media(self, **features: str) -> None:
        """Set media features, such as ``prefers_color_scheme="dark"``."""
        values = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._devtools("Emulation.setEmulatedMedia", features=values)

    def size(self, width: int, height: int) -> None:
        """Set the size of the page, in CSS pixels."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def screenshot(self) -> bytes:
        """Return the whole page as a PNG."""
        shot = self._devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        self._call("DELETE", self._session)

    def _devtools(self, command: str, **parameters: object) -> Any:
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if method == "DELETE" else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        with self._opener.open(request, timeout=_PATIENCE) as answer:
            return json.loads(answer.read())["value"]


def skip_without_browser() -> None:
    for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: install Debian's {package}")


@contextlib.contextmanager
def browser(directory: Path, *flags: str) -> Iterator[Browser]:
    """Chromium, ended afterwards.

    :param directory: a directory for the profile and the log.
    """
    skip_without_browser()
    log = directory / "driver.log"
    driver = subprocess.Popen(
        ["chromedriver", "--port=0", f"--log-path={log}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(directory)},
    )
    with driver:
        try:
            assert driver.stdout is not None
            port = next(
                word.rstrip(".")
                for line in driver.stdout
                if "started successfully on port" in line
                for word in [line.split()[-1]]
            )
            window = Browser(f"http://127.0.0.1:{port}", directory / "profile", *flags)
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
