"""Files on a server: of what is measured the bytes travel, and little else."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import planescope as ps
from planescope.files.errors import CheckpointError

FILES = Path(__file__).parents[1] / "tensorflow_files"

# Most of a network is often linear layers, which are not measured.
LARGE = 8 << 20


class Files(BaseHTTPRequestHandler):
    """A server of files, which counts what it sends and can be made to misbehave."""

    protocol_version = "HTTP/1.1"
    folder: Path
    fault = ""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        name, _, _ = self.path.lstrip("/").partition("?")
        server.asked.append((self.path, self.headers.get("Range")))
        if self.fault == "elsewhere" and name != "moved":
            self.send_response(302)
            self.send_header("Location", "http://192.0.2.1/a")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file = self.folder / name
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        first = len(server.asked) == 1
        tag = '"one"' if first or self.fault != "changed" else '"two"'
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        same = self.headers.get("If-Range") in (None, tag)
        if span and same and self.fault != "no ranges":
            begin, end = int(span[1]), min(int(span[2]) + 1, len(data))
            body, status = data[begin:end], 206
            at = begin + (self.fault == "other bytes")
            where = f"bytes {at}-{end - 1}/{len(data)}"
        else:
            body, status, where = data, 200, None
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        if where:
            self.send_header("Content-Range", where)
        self.end_headers()
        if self.fault == "ends early" and not first:
            body = body[: len(body) // 2]
            self.close_connection = True
        server.sent += len(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)


@contextlib.contextmanager
def serve(folder, fault=""):
    handler = type("Handler", (Files,), {"folder": folder, "fault": fault})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked, server.sent = [], 0
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server
        finally:
            server.shutdown()
            thread.join()


def weights():
    draw = np.random.default_rng(0)
    return {
        "a.weight": draw.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "a.bias": draw.normal(size=8).astype(np.float32),
        "b.weight": np.zeros((1024, LARGE // 4096), np.float32),
        "c.weight": draw.normal(size=(16, 8, 3, 3)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_file(weights(), folder / "net.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in weights().items()}, folder / "net.pt")
    shutil.copy(FILES / "net.keras", folder)
    shutil.copy(FILES / "net.tflite", folder)
    return folder


def rows(measured):
    return json.loads(measured.to_json())["layers"]


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_only_what_is_measured_travels(name, folder):
    with serve(folder) as (url, server):
        measured = ps.measure(f"{url}/{name}")
    right = ps.measure(folder / name)
    assert rows(measured) == rows(right)
    assert measured.source.bytes == right.source.bytes > LARGE
    assert server.sent < LARGE // 4


@pytest.mark.parametrize("name", ["net.keras", "net.tflite"])
def test_a_file_of_another_format_comes_whole(name, folder):
    with serve(folder) as (url, _):
        measured = ps.measure(f"{url}/{name}", kinds="all")
    assert rows(measured) == rows(ps.measure(folder / name, kinds="all"))


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.keras"])
def test_a_server_without_ranges_gives_all(name, folder):
    with serve(folder, "no ranges") as (url, server):
        measured = ps.measure(f"{url}/{name}", kinds="all")
    assert rows(measured) == rows(ps.measure(folder / name, kinds="all"))
    assert len(server.asked) == 1


def test_a_password_in_the_address_is_not_in_the_result(folder):
    with serve(folder) as (url, server):
        measured = ps.measure(f"{url}/net.safetensors?token=secret")
    assert measured.source.path == f"{url}/net.safetensors"
    assert server.asked[0][0].endswith("?token=secret")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("changed", "changed on the server while it was read"),
        ("other bytes", "gives other bytes than were asked for"),
        ("ends early", "the download failed"),
        ("elsewhere", "only https:// is read from"),
    ],
)
def test_a_server_that_misbehaves_is_one_sentence(fault, sentence, folder):
    with serve(folder, fault) as (url, _), pytest.raises(CheckpointError, match=sentence):
        ps.measure(f"{url}/net.safetensors")


def test_what_is_not_there_is_one_sentence(folder):
    with serve(folder) as (url, _), pytest.raises(CheckpointError, match="server answers 404"):
        ps.measure(f"{url}/gone.safetensors")


@pytest.mark.parametrize("url", ["http://example.org/net.pt", "https:///net.pt", "https://[/a"])
def test_an_address_that_is_none_of_ours_is_refused(url):
    with pytest.raises(CheckpointError, match=r"only https://|is no address"):
        ps.measure(url)


def test_nothing_is_left_in_the_temporary_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with serve(folder) as (url, _):
        ps.measure(f"{url}/net.safetensors")
        assert list(tmp_path.iterdir()) == []


def test_several_threads_read_at_once(folder):
    from planescope.checkpoints import read_contents
    from planescope.checkpoints.locate import locate

    with serve(folder) as (url, _):
        _, state = read_contents(locate(f"{url}/net.safetensors"))
        found = {}

        def read(name):
            found[name] = state.tensors[name].read()

        threads = [threading.Thread(target=functools.partial(read, n)) for n in state.tensors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name, array in weights().items():
        np.testing.assert_array_equal(found[name], array)
