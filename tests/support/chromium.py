"""A headless Chromium, driven over its debugging pipe (file descriptors 3 and 4): no driver and no package needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")
TIMEOUT_S = 60.0

_TO_3_AND_4 = """
import os, sys
high = [os.dup(int(number)) for number in sys.argv[1:3] for _ in range(8)]  # none of these is 3 or 4
os.dup2(high[7], 3); os.dup2(high[15], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts the pipes to the numbers that the browser expects, and becomes the browser."""

KEY_CODES = {"Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}


class Page:
    """One page of a browser. Use as a context manager. `errors` has what its console complained of."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 800) -> None:
        self._folder, self._size = folder, (width, height)
        self._number, self._buffer = 0, b""
        self.errors: list[str] = []

    def __enter__(self) -> Page:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        width, height = self._size
        command = [
            sys.executable, "-c", _TO_3_AND_4, str(to_browser), str(from_browser), str(EXECUTABLE), "--headless=new",
            "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", f"--user-data-dir={self._folder}", f"--window-size={width},{height}",
            "--remote-debugging-pipe",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self, deadline: float) -> Any:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        first, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(first)
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"]["exception"].get("description", "exception"))
        return message

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip

    def open(self, url: str) -> None:
        """Open an address and wait until the page is loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def follow(self, expression: str) -> None:
        """Do what leads to another page, such as sending a form, and wait until that page is loaded."""
        self.evaluate(f"window.isFormer = true; {expression}")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            # Between two pages there is none that answers.
            with contextlib.suppress(AssertionError):
                if self.evaluate("!window.isFormer && document.readyState === 'complete'"):
                    return
            assert time.monotonic() < deadline, f"{expression} leads nowhere"
            time.sleep(0.02)

    def wait_for(self, expression: str, is_right: Callable[[Any], bool] = bool) -> Any:
        """Wait until the value of an expression is right, and return it."""
        deadline = time.monotonic() + TIMEOUT_S
        while not is_right(value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} stays {value!r}"
            time.sleep(0.02)
        return value

    def press(self, key: str) -> None:
        """Press and release a key."""
        code = KEY_CODES.get(key, ord(key[0].upper()))
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, file: Path) -> None:
        """Write what is seen as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
