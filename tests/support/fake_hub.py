"""The Hugging Face Hub's HTTP interface on the loopback, as far as it is used: look, read parts, upload."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import yaml
from range_server import Content, Handler, RangeServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_this_is_the_secret_token"

_INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([^/?]+))?")
_RESOLVE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
_UPLOAD = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit)/main")
_LFS = re.compile(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch")


@dataclass
class FakeHub:
    """Repositories by name, each {path: content}; big files are sent by another server, under signed URLs.

    gated: repositories that only `TOKEN` opens. private: what was created as such. uploaded: blobs by digest.
    refused: the status that a path is answered with instead.
    """

    repositories: dict[str, dict[str, bytes]]
    storage: RangeServer
    server: RangeServer
    gated: set[str] = field(default_factory=set)
    private: dict[str, bool] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def route(self, handler: Handler, method: str, body: bytes) -> bool:
        path = urlsplit(handler.path).path
        if path in self.refused:
            handler.answer(self.refused[path], b"{}")
            return True
        for pattern, answer in (
            (_RESOLVE, self._resolve),
            (_UPLOAD, self._upload),
            (_LFS, self._lfs),
            (_INFO, self._info),
        ):
            if found := pattern.fullmatch(path):
                answer(handler, body, *found.groups())
                return True
        if path == "/api/repos/create":
            self._create(handler, json.loads(body))
        elif path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            errors = [] if isinstance(head, dict) and head["tags"] else [{"message": "no metadata"}]
            _json(handler, {"errors": errors, "warnings": []})
        elif path == "/api/whoami-v2":
            _json(handler, {"type": "user", "name": "me", "auth": {"type": "access_token"}})
        elif path.startswith("/blob/") and method == "PUT":
            self.uploaded[path[6:]] = body
            handler.answer(200, b"")
        else:
            return False
        return True

    def _allowed(self, handler: Handler, name: str) -> bool:
        if name not in self.repositories:
            _error(handler, 401, "RepoNotFound", "Repository not found")
        elif name in self.gated and handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            _error(handler, 403, "GatedRepo", "Access to this model is restricted")
        else:
            return True
        return False

    def _info(self, handler: Handler, body: bytes, name: str, revision: str | None) -> None:
        if not self._allowed(handler, name):
            return
        if revision not in (None, "main", COMMIT):
            _error(handler, 404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = []
        for path, content in self.repositories[name].items():
            sha = hashlib.sha256(content).hexdigest()
            lfs = {"sha256": sha, "size": len(content), "pointerSize": 134}
            extra = {"lfs": lfs} if path.endswith(".safetensors") else {}
            siblings.append({"rfilename": path, "size": len(content), "blobId": sha[:40], **extra})
        _json(handler, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _resolve(self, handler: Handler, body: bytes, name: str, revision: str, path: str) -> None:
        if not self._allowed(handler, name):
            return
        content = self.repositories[name].get(path)
        if content is None:
            _error(handler, 404, "EntryNotFound", "Entry not found")
            return
        self.storage.files[f"/cdn/{name}/{path}"] = Content(content, f'"{len(content)}"')
        where = f"{self.storage.url}/cdn/{name}/{path}?Signature=SIGNED"
        linked = {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        handler.answer(302, b"", {"Location": where, "X-Repo-Commit": COMMIT, **linked})

    def _create(self, handler: Handler, asked: dict) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.repositories:
            there = json.dumps(
                {"error": "it exists", "url": f"{self.server.url}/{name}", "id": name, "name": name}
            )
            handler.answer(409, there.encode())
            return
        self.repositories[name], self.private[name] = {}, asked.get("visibility") == "private"
        _json(handler, {"url": f"{self.server.url}/{name}", "id": name, "name": name})

    def _upload(self, handler: Handler, body: bytes, name: str, what: str) -> None:
        if what == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for f in files
            ]
            _json(handler, {"files": modes})
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.uploaded[value["oid"]]
        _json(
            handler,
            {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}",
                "hookOutput": "",
            },
        )

    def _lfs(self, handler: Handler, body: bytes, name: str) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.url}/blob/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]
        _json(handler, {"transfer": "basic", "objects": objects})


@contextmanager
def fake_hub(
    monkeypatch: pytest.MonkeyPatch, repositories: dict[str, dict[str, bytes]], token: str | None = TOKEN
) -> Iterator[FakeHub]:
    """Make huggingface_hub talk to a hub of these repositories, logged in with `token`."""
    from huggingface_hub import constants

    with RangeServer() as storage, RangeServer() as server:
        hub = FakeHub(repositories, storage, server)
        server.routes = hub.route
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        if token is None:
            monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        yield hub


def _json(handler: Handler, value: object) -> None:
    handler.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _error(handler: Handler, status: int, code: str, text: str) -> None:
    handler.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": text})
