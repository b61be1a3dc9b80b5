"""Hugging Face's Hub as far as huggingface_hub asks: repositories in memory, on loopback.

What the package sends was seen with huggingface_hub 2.4: repos/create, validate-yaml, preupload, LFS batch, PUT,
verify, commit; and for downloads the model's description, and HEAD and GET of files.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """`files` by repository and name; `requests` is what was asked, as "METHOD path"; `token` is who may write."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.kinds: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: list[tuple[str, int]] = []
        """Answers to come: (a part of the path, status); each once."""
        self.token = "hf_test"


@contextlib.contextmanager
def running() -> Iterator[tuple[FakeHub, str]]:
    """The hub and its address."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._is_refused():
            return
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}" and "/objects/" not in path:
            self._json({"error": "who are you?"}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            asked = json.loads(content)["files"]
            mode = {True: "lfs", False: "regular"}
            self._json(
                {"files": [{"path": each["path"], "uploadMode": mode[each["path"].endswith(".safetensors")],
                            "shouldIgnore": False} for each in asked]}
            )  # fmt: skip
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(content))
        elif path == "/verify":
            self._json({})
        elif match := re.fullmatch(r"/api/(model|space)s/(.+)/commit/main", path):
            self._commit(match[2], content)
        else:
            self._json({"error": f"unknown {path}"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_refused():
            return
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._is_refused():
            return
        path = self.path.partition("?")[0]
        if (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path)) and match[1] in self.hub.files:
            siblings = [{"rfilename": name} for name in sorted(self.hub.files[match[1]])]
            self._json({"id": match[1], "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        elif (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path)) and match[1] in self.hub.files:
            self._json([{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in sorted(self.hub.files[match[1]].items())])  # fmt: skip
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(self.hub.files.get(match[1], {}).get(match[2]))
        else:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.files:
            self._json({"error": "You already created this repo"}, 409)
            return
        self.hub.files[name] = {}
        self.hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.kinds[name] = f"{asked.get('type') or 'model'} {asked.get('sdk') or ''}".strip()
        self._json({"url": f"{self._address()}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            entry: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.stored:
                upload = {"href": f"{self._address()}/upload/{each['oid']}", "header": {}}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self._address()}/verify", "header": {}}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, content: bytes) -> None:
        for line in content.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[repo][value["path"]] = self.hub.stored[value["oid"]]
        url = f"{self._address()}/{repo}/commit/{COMMIT}"
        self._json({"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._answer(200, content, headers)

    def _is_refused(self) -> bool:
        self.hub.requests.append(f"{self.command} {self.path.partition('?')[0]}")
        for failure in self.hub.failures:
            if failure[0] in self.path:
                self.hub.failures.remove(failure)
                self._json({"error": "not now"}, failure[1])
                return True
        return False

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
