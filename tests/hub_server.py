"""A Hugging Face hub on this machine, as far as its real client needs one.

    with serve(folder) as url:
        subprocess.run([...], env={**os.environ, "HF_ENDPOINT": url, "HF_HOME": cache})

The client takes `HF_ENDPOINT` when it is imported, hence the process of its own. The folder holds
`OWNER/NAME/REVISION/...files`; a file `OWNER/NAME/GATED` closes that model's files to everybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def serve(folder: Path, sent: list[int] | None = None) -> Iterator[str]:
    """Serve the models of a folder while the context lasts; gives the URL.

    Bytes of each answer are added to `sent`.
    """
    handler = type("Handler", (_Hub,), {"folder": folder, "sent": [] if sent is None else sent})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def commit_of(snapshot: Path) -> str:
    """Commit hash that stands for the folder of a revision."""
    return hashlib.sha1("/".join(snapshot.parts[-3:]).encode()).hexdigest()  # noqa: S324


class _Refusal(Exception):
    """What the hub answers instead of a file, by the codes that its client knows."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    sent: ClassVar[list[int]] = []  # bytes of each answer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""

    def _answer(self, *, with_body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            status, headers, body = 200, *self._find(parts)
        except _Refusal as refusal:
            # The hub says 401 for what does not exist too, lest names of private models leak.
            status, headers, body = refusal.status, {"X-Error-Code": refusal.code}, b""
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if span and status == 200:
            begin, end = int(span[1]), min(int(span[2]) + 1, len(body))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(body)}"
            body, status = body[begin:end], 206
        self.send_response(status)
        if with_body:
            self.sent.append(len(body))
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _find(self, parts: list[str]) -> tuple[dict[str, str], bytes]:
        match parts:
            case ["api", "models", owner, name]:
                return self._info(self._snapshot(owner, name, "main"))
            case ["api", "models", owner, name, "revision", revision]:
                return self._info(self._snapshot(owner, name, revision))
            case ["api", "models", owner, name, "tree", revision, *_]:
                return self._tree(self._snapshot(owner, name, revision))
            case [owner, name, "resolve", revision, *file] if file:
                return self._file(self._snapshot(owner, name, revision), Path(*file))
        raise _Refusal(404, "EntryNotFound")

    def _snapshot(self, owner: str, name: str, revision: str) -> Path:
        model = self.folder / owner / name
        if not model.is_dir():
            raise _Refusal(401, "RepoNotFound")
        for snapshot in model.iterdir():
            # A slash in the name of a revision cannot be in that of a folder.
            if revision.replace("/", "%2F") == snapshot.name or revision == commit_of(snapshot):
                return snapshot
        raise _Refusal(404, "RevisionNotFound")

    def _info(self, snapshot: Path) -> tuple[dict[str, str], bytes]:
        owner, name = snapshot.parts[-3:-1]
        siblings = [{"rfilename": file} for file in _files(snapshot)]
        info = {"id": f"{owner}/{name}", "sha": commit_of(snapshot), "siblings": siblings}
        return {"Content-Type": "application/json"}, json.dumps(info).encode()

    def _tree(self, snapshot: Path) -> tuple[dict[str, str], bytes]:
        tree = [
            {"type": "file", "path": file, "oid": _etag(snapshot / file), "size": size}
            for file in _files(snapshot)
            for size in [(snapshot / file).stat().st_size]
        ]
        return {"Content-Type": "application/json"}, json.dumps(tree).encode()

    def _file(self, snapshot: Path, file: Path) -> tuple[dict[str, str], bytes]:
        if (snapshot.parent / "GATED").exists():
            raise _Refusal(401, "GatedRepo")
        if file.as_posix() not in _files(snapshot):
            raise _Refusal(404, "EntryNotFound")
        etag = f'"{_etag(snapshot / file)}"'
        return {"ETag": etag, "X-Repo-Commit": commit_of(snapshot)}, (snapshot / file).read_bytes()


def _files(snapshot: Path) -> list[str]:
    return sorted(f.relative_to(snapshot).as_posix() for f in snapshot.rglob("*") if f.is_file())


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()  # noqa: S324
