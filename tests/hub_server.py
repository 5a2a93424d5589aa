"""A local server with the Hugging Face hub's API for datasets: information, file lists, and files with ranges.

    HF_ENDPOINT=http://127.0.0.1:PORT python ...

As `huggingface_hub` and `datasets` ask for them; `gated/...` answers as a gated dataset does, what is not there as a
missing one.
"""

from collections.abc import Mapping
import contextlib
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import threading
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Mapping[str, Mapping[str, bytes]]

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value, status=200, **headers):
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def missing(self, code, status=404):
        self.answer_json({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def files(self, repository, revision):
        """The files of a repository; None where the request was answered with why there are none."""
        if repository.startswith("gated/"):
            return self.missing("GatedRepo", 403 if self.headers.get("Authorization") else 401)
        if repository not in self.repositories:
            return self.missing("RepoNotFound")
        if revision not in (None, "main", COMMIT):
            return self.missing("RevisionNotFound")
        return self.repositories[repository]

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if match := _API.match(path):
            self.answer_api(*match.groups())
        elif match := _FILE.match(path):
            self.answer_file(*match.groups())
        else:
            self.missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        repository, _, revision, _ = _API.match(unquote(urlsplit(self.path).path)).groups()
        if (files := self.files(repository, revision)) is not None:
            is_json = self.headers.get("Content-Type", "").startswith("application/json")
            paths = (json.loads(data) if is_json else parse_qs(data.decode()))["paths"]
            listed = [item for item in tree(files) if item["path"] in paths]
            self.answer_json(listed)

    def answer_api(self, repository, what, revision, inside):
        if (files := self.files(repository, revision)) is None:
            return
        if what == "tree":
            inside = (inside or "").strip("/")
            within = [item for item in tree(files) if item["path"].startswith(f"{inside}/" if inside else "")]
            deep = "recursive=true" in self.path.lower()
            depth = inside.count("/") + 1 if inside else 0
            self.answer_json([item for item in within if deep or item["path"].count("/") == depth])
        else:
            siblings = [{"rfilename": name} for name in files]
            self.answer_json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def answer_file(self, repository, revision, path):
        if (files := self.files(repository, revision)) is None:
            return
        if path not in files:
            return self.missing("EntryNotFound")
        content = files[path]
        about = {"X_Repo_Commit": COMMIT, "ETag": f'"{blob(content)}"', "Accept_Ranges": "bytes"}
        if span := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            about["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            self.answer(206, content[first : last + 1], **about)
        else:
            self.answer(200, content, **about)


def blob(content):
    """A file's git hash."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree(files):
    """Files and folders of a repository, as the hub lists them."""
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    listed = [{"type": "directory", "path": name, "oid": blob(name.encode()), "size": 0} for name in sorted(folders)]
    return listed + [
        {"type": "file", "path": name, "oid": blob(content), "size": len(content)} for name, content in files.items()
    ]


@contextlib.contextmanager
def hub_server(repositories):
    """Serves datasets, each a mapping of paths to bytes, by owner/name; yields the endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"repositories": repositories}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
