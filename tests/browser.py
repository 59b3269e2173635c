"""A real JupyterLab on a folder of its own, and a real Chromium that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from threading import Thread
from typing import TYPE_CHECKING

import psutil
from urllib3 import PoolManager, Retry

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Nothing but this machine is reached.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
SECONDS = 300

READY = "To access the server"  # said once the server's record is written, and before it listens
PATIENT = PoolManager(retries=Retry(connect=100, backoff_factor=0.1, backoff_max=1))

KERNEL = "jupyterapp.shell.currentWidget.sessionContext.session.kernel"


class Lab:
    """A JupyterLab and a page of it. folder: what it serves; errors: what the page's console complained of."""

    def __init__(self, folder: Path, server: dict, page: Page):
        self.folder, self.server, self.page = folder, server, page
        self.errors: list[str] = []
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        # JupyterLab shows a text before its attachments, and the browser asks for them under a name that only it knows.
        if message.type == "error" and not message.location["url"].startswith("attachment:"):
            self.errors.append(message.text)

    def open(self, path: str) -> None:
        """Open a notebook of the folder, and wait for its kernel."""
        self.page.goto(f"{self.server['url']}lab/tree/{path}?reset&token={self.server['token']}")
        self.page.wait_for_function("path => window.jupyterapp?.shell.currentWidget?.context?.path === path", arg=path)
        self.page.evaluate("jupyterapp.shell.currentWidget.context.ready")
        self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
        self.page.wait_for_function(f"{KERNEL}.connectionStatus === 'connected'")
        self.idle()

    def run_all(self) -> None:
        """Run > Run All Cells, until all have run or one has failed."""
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")

    def idle(self) -> None:
        """Wait until the kernel has done all that it was asked for: it answers one question after the other."""
        self.page.evaluate(f"{KERNEL}.requestKernelInfo()")


@contextmanager
def jupyterlab(folder: Path, private: Path) -> Iterator[dict]:
    """A server of a folder, as its own record describes it (url, token, ...). It and its kernels end with the block.

    private: where it keeps its settings and records, so that nothing of the user's is read or written.
    """
    places = {f"JUPYTER_{kind}_DIR": str(private / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | places | {"IPYTHONDIR": str(private / "ipython"), "PATH": path}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command.append("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate")
    private.mkdir()
    process = psutil.Popen(command, cwd=folder, env=environment, stdout=DEVNULL, stderr=PIPE, text=True)
    try:
        yield _answering(process, private)
    finally:
        if process.poll() is None:
            _end(process)


def _answering(process: psutil.Popen, private: Path) -> dict:
    """The server's record, once it answers."""
    log = []
    for line in process.stderr:
        log.append(line)
        if READY in line:
            break
    else:
        raise RuntimeError(f"JupyterLab did not start:\n{''.join(log)}")
    Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the server
    (record,) = (private / "runtime").glob("jpserver-*.json")
    server = json.loads(record.read_text())
    PATIENT.request("GET", f"{server['url']}api/status?token={server['token']}", timeout=SECONDS)
    return server


def _end(process: psutil.Popen) -> None:
    """Ask the server to end, which ends its kernels, and kill what is left."""
    family = [process, *process.children(recursive=True)]
    process.terminate()
    for left in psutil.wait_procs(family, timeout=30)[1]:
        left.kill()


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """A headless browser that reaches this machine only."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", OFFLINE])
        yield browser
        browser.close()


def program() -> str | None:
    """Where Chromium lies, if anywhere."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)
