"""Data sets of the hub: the real client of ``datasets`` against a server that speaks the hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME, COMMIT = "someone/moods", "c0ffee" + "0" * 34
CARD = """---
configs:
- config_name: plain
  default: true
  data_files:
  - split: train
    path: train.jsonl
  - split: test
    path: test.jsonl
- config_name: other
  data_files: other.jsonl
- config_name: broken
  data_files: broken.jsonl
---
# Moods
"""
FILES = {
    "README.md": CARD,
    "train.jsonl": "".join(json.dumps({"text": f"a good day {n}", "label": "happy"}) + "\n" for n in range(3)),
    "test.jsonl": json.dumps({"text": "rain", "label": "sad"}) + "\n",
    "other.jsonl": json.dumps({"sentence": "it is cold", "label": 0}) + "\n",
    "broken.jsonl": "no JSON\n",
}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that reading a public data set needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        resolve = f"/datasets/{NAME}/resolve/"
        if path.startswith(resolve):
            revision, file = path.removeprefix(resolve).split("/", 1)
            if revision in (COMMIT, "main") and file in FILES:
                return self.answer(FILES[file].encode(), {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT})
        elif path in (f"/api/datasets/{NAME}", *(f"/api/datasets/{NAME}/revision/{name}" for name in ("main", COMMIT))):
            files = [{"rfilename": file} for file in FILES]
            about = {"id": NAME, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
            return self.answer(json.dumps({**about, "downloads": 0, "likes": 0, "siblings": files}).encode())
        elif path.startswith(f"/api/datasets/{NAME}/tree/{COMMIT}"):
            return self.answer(json.dumps([described(file) for file in FILES]).encode())
        return self.missing()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path.startswith(f"/api/datasets/{NAME}/paths-info/"):
            asked = body["paths"] if isinstance(body["paths"], list) else [body["paths"]]
            return self.answer(json.dumps([described(file) for file in asked if file in FILES]).encode())
        return self.missing()

    def missing(self) -> None:
        found = self.path.startswith((f"/api/datasets/{NAME}", f"/datasets/{NAME}"))
        self.answer(b"{}", {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"}, 404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        self.server.asked.append((self.command, self.path, args[2]))


def digest(file):
    return hashlib.sha1(FILES[file].encode()).hexdigest()


def described(file):
    return {"type": "file", "path": file, "size": len(FILES[file].encode()), "oid": digest(file)}


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


CLIENT = """
import json, sys
from mlx_bert.data.readers import read_kind
for source in sys.argv[1:]:
    try:
        rows = read_kind(source, "class")
        print(json.dumps([[row["text"], row["label"]] for row in rows]))
    except (ValueError, FileNotFoundError, OSError) as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_data_sets_of_the_hub_are_downloaded_once(hub, tmp_path):
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    names = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env = {**names, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"),
           "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip

    def read(*sources):
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, *sources], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    asked = ["@train", "@test", ":other", ":broken", "", "@dev"]
    train, test, other, broken, ambiguous, unknown = read(
        *(f"hub:{NAME}{rest}" for rest in asked),
    )
    assert train == [[f"a good day {n}", "happy"] for n in range(3)]
    assert test == [["rain", "sad"]]
    assert other == [["it is cold", "0"]]
    assert broken.startswith(f"[data] datasets cannot load {NAME}:broken: An error occurred")
    assert "JSON parse error" in broken
    assert f"hub:{NAME} has train, test" in ambiguous
    assert 'Unknown split "dev"' in unknown
    # another process finds the files, and the hub is asked for nothing but whether they are the same
    downloads = [path for method, path, status in hub.asked if (method, status) == ("GET", "200") and ".jsonl" in path]
    assert len(downloads) == len(set(downloads)) == 4
    hub.asked.clear()
    assert read(f"hub:{NAME}@train", "hub:someone/else") == [
        train,
        "[data] datasets cannot load someone/else: "
        "Dataset 'someone/else' doesn't exist on the Hub or cannot be accessed.",
    ]
    assert hub.asked
    assert not [path for method, path, _ in hub.asked if method == "GET" and ".jsonl" in path]
