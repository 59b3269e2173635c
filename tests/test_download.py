"""A full model's files come once, whole, and after a kill only what is missing: by the Hub's own client, from a server
that speaks as much of the Hub as that client asks for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Event, Thread

import pytest

from minicos.full import WAN_REVISION, full_models

NAME = "wan2.2-i2v-a14b"
REPOSITORY = full_models()[NAME].repository
LAST = "transformer_2/diffusion_pytorch_model.safetensors"
# With room on the disk for the model's true size, which is not what comes.
CLIENT = f"""
import sys
from dataclasses import replace
from minicos import full
from minicos.errors import MinicosError
here = replace(full.machine(), disk_gb=1000.0)
full.machine = lambda: here
try:
    print(full.download({NAME!r}))
except MinicosError as error:
    sys.exit(f"minicos: {{error}}")
"""


class Hub(ThreadingHTTPServer):
    """Holds one commit of one repository. The LAST file comes when `go` is set. given: whole files, in order."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {name: (folder / name).read_bytes() for name in names_in(folder)}
        self.given: list[str] = []
        self.go, self.gave = Event(), Condition()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """What the Hub answers to a list of files, and to a question for one."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == f"/api/models/{REPOSITORY}/tree/{WAN_REVISION}":
            listed = [
                {"type": "file", "oid": f"{number:040x}", "size": len(content), "path": name}
                for number, (name, content) in enumerate(self.server.files.items())
            ]
            self._send(json.dumps(listed).encode(), "application/json")
            return
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{WAN_REVISION}/")
        if name not in self.server.files:
            self.send_error(404)
            return
        if name == LAST and self.command == "GET" and not self.server.go.is_set():
            self.server.go.wait(60)
            return
        number = [*self.server.files].index(name)
        self._send(self.server.files[name], "application/octet-stream", ETag=f'"{number:040x}"')
        if self.command == "GET":
            with self.server.gave:
                self.server.given.append(name)
                self.server.gave.notify()

    def _send(self, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(200)
        headers |= {"Content-Type": kind, "Content-Length": str(len(content)), "X-Repo-Commit": WAN_REVISION}
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(tiny_wan_folder):
    with Hub(tiny_wan_folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.go.set()
        server.shutdown()


def client(address: str, cache: Path) -> subprocess.Popen:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", CLIENT]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def names_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_a_download_goes_on_after_a_kill_and_is_not_asked_for_again(hub, tmp_path):
    killed = client(hub.address, tmp_path)
    with hub.gave:
        assert hub.gave.wait_for(lambda: len(hub.given) == len(hub.files) - 1, 60)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    snapshot = next(tmp_path.rglob(WAN_REVISION))
    whole = {path.name for path in snapshot.parents[1].glob("blobs/*")}  # in the snapshot or, when killed, about to be
    kept = [name for number, name in enumerate(hub.files) if f"{number:040x}" in whole]
    assert set(names_in(snapshot)) <= set(kept)
    hub.go.set()
    hub.given.clear()
    again = client(hub.address, tmp_path)
    folder, said = again.communicate()
    assert again.returncode == 0, said[-2000:]
    assert f"{NAME}: downloading about 126 GB from {REPOSITORY} (Apache-2.0)" in said
    assert "GB on the GPU and" in said
    assert folder == f"{snapshot}\n"
    assert {name: (snapshot / name).read_bytes() for name in names_in(snapshot)} == hub.files
    assert kept
    assert sorted([*kept, *hub.given]) == sorted(hub.files)  # what was there did not come again
    offline = client("http://127.0.0.1:1", tmp_path)
    assert offline.communicate() == (folder, "")


def test_what_other_programs_fetched_singly_is_not_taken_for_all(hub, tmp_path):
    hub.go.set()
    assert client(hub.address, tmp_path).wait() == 0
    (last,) = tmp_path.rglob(LAST)
    last.resolve().unlink()
    last.unlink()
    for listing in tmp_path.rglob("trees"):  # by which the Hub's library knows what a snapshot should hold
        shutil.rmtree(listing)
    hub.given.clear()
    assert client(hub.address, tmp_path).wait() == 0
    assert hub.given == [LAST]
    assert last.exists()


def test_a_hub_without_the_model_is_one_line(hub, tmp_path):
    alone = client(f"{hub.address}/elsewhere", tmp_path)
    said = alone.communicate()[1].splitlines()
    assert alone.returncode == 1
    assert len(said) == 2  # what would be downloaded, and why it was not
    assert "could not be downloaded: " in said[1]
    assert said[1].endswith("run the same again to go on")
