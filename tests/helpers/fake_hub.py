"""A small Hub for tests: the part of its HTTP interface with which huggingface_hub uploads and downloads datasets."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub


class FakeHub:
    """
    Repositories and large files, by content. `sent` has the hash of each large file that was received. While
    `fail_after` is a number, only this many further large files are accepted.
    """

    def __init__(self):
        self.repos, self.blobs, self.sent, self.fail_after = {}, {}, [], None
        self.private = {}
        self.lock = threading.Lock()

    def files(self, repo_id):
        """Contents of the files of a repository, by path."""
        return {path: self.blobs[oid] for path, oid in self.repos[repo_id].items()}

    def commit(self, repo_id, lines):
        """Applies a commit to a repository."""
        files = dict(self.repos[repo_id])
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self.store(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.blobs
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        self.repos[repo_id] = files

    def store(self, content):
        """Keeps a file, and returns its hash."""
        oid = hashlib.sha256(content).hexdigest()
        self.blobs[oid] = content
        return oid

    def revision(self, repo_id):
        """The commit of a repository: a hash of its files."""
        return hashlib.sha1(json.dumps(sorted(self.repos[repo_id].items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def hub(self):
        return self.server.hub

    def answer(self, value=None, status=200, headers=(), content=None):
        body = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_POST(self):
        body, path = self.body(), self.path.split("?")[0]
        if path == "/api/repos/create":
            options = json.loads(body)
            repo_id = "/".join(filter(None, (options.get("organization"), options["name"])))
            self.hub.private.setdefault(repo_id, options.get("private") or options.get("visibility") == "private")
            created = repo_id not in self.hub.repos
            self.hub.repos.setdefault(repo_id, {})
            return self.answer({"url": f"{self.server.url}/datasets/{repo_id}"}, 200 if created else 409)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/datasets/(\w+/[\w.-]+)/preupload/main", path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".jsonl") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for item in json.loads(body)["objects"]:
                upload = {"actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
                objects.append({**item, **({} if item["oid"] in self.hub.blobs else upload)})
            return self.answer({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/datasets/(\w+/[\w.-]+)/commit/main", path):
            self.hub.commit(found[1], body.decode().strip().split("\n"))
            url = f"{self.server.url}/datasets/{found[1]}/commit/{self.hub.revision(found[1])}"
            return self.answer({"success": True, "commitUrl": url, "commitOid": self.hub.revision(found[1])})
        return self.answer({"error": path}, 404)

    def do_PUT(self):
        body = self.body()
        with self.hub.lock:
            if self.hub.fail_after == 0:
                return self.answer({"error": "the line is cut"}, 403)
            if self.hub.fail_after is not None:
                self.hub.fail_after -= 1
            self.hub.sent.append(self.hub.store(body))
        return self.answer({})

    def do_GET(self):
        path = self.path.split("?")[0]
        found = re.match(r"(?:/api)?/datasets/(\w+/[\w.-]+)(.*)", path)
        if not found or found[1] not in self.hub.repos:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        repo_id, rest = found.groups()
        files, sha = self.hub.files(repo_id), self.hub.revision(repo_id)
        if resolved := re.fullmatch(r"/resolve/[^/]+/(.+)", rest):
            if resolved[1] not in files:
                return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            content = files[resolved[1]]
            headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            return self.answer(content=content, headers=headers)
        if rest.startswith("/tree/"):
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            )
        siblings = [{"rfilename": name} for name in files]
        return self.answer({"id": repo_id, "sha": sha, "siblings": siblings, "private": False, "tags": []})

    do_HEAD = do_GET


@contextmanager
def fake_hub(monkeypatch, cache):
    """Lets huggingface_hub use a new [`FakeHub`], which is yielded, with an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub, server.url = FakeHub(), f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": server.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
