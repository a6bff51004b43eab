"""A headless Chromium that tests drive through a pipe: no port, no network, no package beside the browser itself."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

VARIABLE = "SPA_JAX_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 60
_WITH_PIPES = """
import fcntl, os, sys
down, up = (fcntl.fcntl(int(own), fcntl.F_DUPFD, 10) for own in sys.argv[1:3])
os.dup2(down, 3), os.dup2(up, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads its commands from file 3 and answers to file 4."""


def find_browser():
    """The path of a Chromium: what the variable names, or what is on the PATH; None where there is none."""
    if named := os.environ.get(VARIABLE):
        if not shutil.which(named):
            raise FileNotFoundError(f"{VARIABLE}={named!r} is not a program")
        return shutil.which(named)
    return next(filter(None, map(shutil.which, _NAMES)), None)


def browser_or_skip():
    """A running browser; the test is skipped where the machine has none."""
    path = find_browser()
    if path is None:
        pytest.skip(f"needs Chromium: none of {', '.join(_NAMES)} is on the PATH, and {VARIABLE} names none")
    return Browser(path)


class Browser:
    """A browser process and one page in it, by the Chrome DevTools protocol over a pipe; close it at the end.

    Attributes:
        requests: addresses that the page asked for, since it was opened.
        complaints: errors and warnings of the page's console, and exceptions, since it was opened.
    """

    def __init__(self, path):
        down, self._write = os.pipe()
        self._read, up = os.pipe()
        options = ["--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars"]
        options += ["--disable-background-networking", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        self.requests, self.complaints = [], []
        self._number, self._buffer = 0, b""
        command = [sys.executable, "-S", "-c", _WITH_PIPES, str(down), str(up), path, *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(down, up), **quiet)
        os.close(down)
        os.close(up)
        self._session = None
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        """End the process."""
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def call(self, method, **parameters):
        """One command, and what it returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == self._number, method)

    def _until(self, is_wanted, what):
        deadline = time.monotonic() + _SECONDS
        while True:
            answer = self._next(deadline, what)
            self._note(answer)
            if is_wanted(answer):
                if "error" in answer:
                    raise RuntimeError(f"{what}: {answer['error']}")
                return answer.get("result", {})

    def _next(self, deadline, what):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._read, 1 << 16) if ready else b""
            if not part:
                raise RuntimeError(f"the browser did not answer to {what}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, message):
        method, told = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])

    def open(self, path, *, width=1200, height=900, dark=False, script=True):
        """Show a file and wait until it is loaded."""
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=media)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.requests, self.complaints = [], []
        self.call("Page.navigate", url=f"file://{path}")
        self._until(lambda message: message.get("method") == "Page.loadEventFired", f"opening {path}")

    def run(self, expression):
        """The value of a JavaScript expression in the page, as plain data."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def click(self, expression):
        """A click of the mouse in the middle of an element."""
        place = self.run(
            f"(() => {{ const e = {expression}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key):
        """A key of the keyboard, such as "Tab" or "Enter"."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40, "ArrowUp": 38}
        own = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        self.call("Input.dispatchKeyEvent", type="keyDown", **own, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **own)

    def picture(self, *, whole=True):
        """A PNG of what is shown, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        return base64.b64decode(found["data"])

    def _clip(self, whole):
        if not whole:
            return {}
        size = self.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        return {"clip": {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}}
