"""A headless Chromium through its WebDriver, with nothing but the standard library."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request

from tests.waiting import PATIENCE_SECONDS

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage",
]  # fmt: skip
TAB = "\ue004"


class Browser:
    """One browser window; the driver and the browser end with the block."""

    def __init__(self, profile, dark=False):
        self.profile, self.dark = profile, dark

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if self._call("GET", "/status")["ready"]:
                    break
            assert time.monotonic() < deadline, "chromedriver does not answer"
            time.sleep(0.1)
        flags = [*FLAGS, f"--user-data-dir={self.profile}"]
        if self.dark:
            flags.append("--blink-settings=preferredColorScheme=0")
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        found = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.base += f"/session/{found['sessionId']}"

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self._call("DELETE", "")
        self.driver.terminate()
        self.driver.wait(timeout=PATIENCE_SECONDS)

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.loads(answer.read())["value"]

    def open(self, path, width=1200, height=900):
        """Show a file from disk in a window of this size."""
        self._call("POST", "/window/rect", {"width": width, "height": height})
        self._call("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script):
        """The value of a script."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def press_tab(self):
        """One press of the Tab key."""
        self.press(TAB)

    def press(self, key):
        """One press of a key, by WebDriver's letter for it."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._call(
            "POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]}
        )

    def console(self):
        """Messages of the console so far."""
        return self._call("POST", "/se/log", {"type": "browser"})

    def emulate(self, width, height):
        """A window narrower than a desktop's smallest."""
        self._call("POST", "/goog/cdp/execute", {
            "cmd": "Emulation.setDeviceMetricsOverride",
            "params": {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True},
        })  # fmt: skip

    def point_at(self, x, y):
        """Move the mouse to a place in the window."""
        move = [{"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)}]
        self._call(
            "POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": move}]}
        )

    def without_scripts(self):
        """From the next page on no page's own script runs; ours do."""
        self._call(
            "POST",
            "/goog/cdp/execute",
            {"cmd": "Emulation.setScriptExecutionDisabled", "params": {"value": True}},
        )

    def screenshot(self):
        """PNG bytes."""
        import base64

        return base64.b64decode(self._call("GET", "/screenshot"))
