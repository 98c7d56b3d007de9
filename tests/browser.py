"""A browser without a window, spoken to through pipes by the DevTools protocol: what tests of pages need of it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Seconds; far more than any answer takes, on a busy machine too.
_PATIENCE = 120.0
KEYS = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One page of a Chromium of its own."""

    def __init__(self, profile: Path) -> None:
        command = [
            *(str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-extensions", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
        ]
        (reading, self._to), (self._from, writing) = os.pipe(), os.pipe()
        # Out of the way of 3 and 4: the browser reads from the one and writes to the other.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reading, writing)]
        self._process = subprocess.Popen(
            command,
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
            close_fds=False,  # all others are closed by themselves
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (reading, writing, *ends):
            os.close(end)
        self._number, self._unread, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what the browser answers to a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        text = json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE)
            assert ready, "the browser does not answer"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has ended"
            self._unread += piece
        answer, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(answer))

    def open(self, page: Path, width: int = 1400, *, dark: bool = False) -> None:
        """Show a file, `width` pixels wide; one of a phone, where that is what phones are."""
        self.events.clear()
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def do(self, code: str) -> Any:
        """Return the value of an expression of JavaScript in the page, or of a promise of it."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements that are selected."""
        return list(
            self.do(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.textContent)")
        )

    def box(self, selector: str) -> dict[str, float]:
        """Return where the first element that is selected lies, in pixels."""
        return dict(self.do(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"))

    def fill(self, place: str, text: str, event: str = "input") -> None:
        """Give a field of a form a value, as a user does."""
        self.do(f"field = document.getElementById('{place}'); field.value = {json.dumps(text)}")
        self.do(f"field.dispatchEvent(new Event('{event}'))")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        told = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a PNG of what is seen, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def troubles(self) -> list[str]:
        """What went wrong since a page was opened: errors of scripts, what a policy forbade, other requests."""
        methods = ("Runtime.exceptionThrown", "Log.entryAdded")
        told = [json.dumps(event["params"]) for event in self.events if event.get("method") in methods]
        asked = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return told + [event["params"]["request"]["url"] for event in asked[1:]]

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        self.call("Browser.close")
        os.close(self._to)
        os.close(self._from)
        self._process.wait(_PATIENCE)
