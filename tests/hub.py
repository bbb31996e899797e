"""A fake Hub on loopback with the endpoints that huggingface_hub uses to create, commit and read.

It keeps repositories in memory, checks the token and can drop connections during uploads. Large
files are served by another host, as the Hub does, which must not see the token.

Buckets are written by the real Xet client: the server names a folder as its content-addressed
store, which that client knows how to use. Jobs are kept as they were asked for; a test runs them.
"""

import base64
import hashlib
import json
import shutil
import tempfile
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_plantedTokenThatNobodyMaySee"
LARGE = (
    ".safetensors",
    ".onnx",
    ".png",
    ".tar",
    ".npz",
    ".parquet",
)  # tracked by LFS in .gitattributes


def git_sha(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repo:
    """Commits of one repository, oldest first: (sha, {path: content})."""

    def __init__(self, created):
        self.created = created
        self.commits = []
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, changes):
        files = {**(self.commits[-1][1] if self.commits else {}), **changes}
        files = {path: content for path, content in files.items() if content is not None}
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision):
        for sha, files in reversed(self.commits):
            if revision in {"main", sha}:
                return sha, files
        return None


class Hub:
    """State of the server."""

    def __init__(self):
        self.repos = {}  # by "models/user/name"
        self.blobs = {}  # by sha256
        self.requests = []  # (method, path, bytes received)
        self.broken = []  # parts of paths: the next request to each is dropped
        self.may_write = True
        self.address = ""
        self.gated = set()  # repositories whose files need a token
        self.accepts_terms = True  # whether the token's owner has accepted their terms
        self.hiccups = defaultdict(list)  # by file name: a status, "truncate" or "corrupt"
        self.retry_after = None
        self.cdn_address = ""
        self.seen_by_cdn = []  # (file name, Authorization) of each request
        self.buckets = {}  # by "user/name": {path: (Xet hash, content)}
        self.store = ""  # folder of the Xet client's content-addressed store
        self.jobs = []  # what was asked for, with what is told about it; see `Handler.submit`
        self.run_job = lambda job: "COMPLETED"  # runs a job that is asked about; returns its stage

    def add_dataset(self, name, files):
        """Make a commit in a data set, which is created if it is new; return its sha."""
        return self.repos.setdefault(f"datasets/{name}", Repo({})).commit(files)

    def num_downloads(self, name):
        """Return how often the content of a large file was asked for."""
        return sum(asked == name for asked, _ in self.seen_by_cdn)

    def stored(self, digest):
        """Return what the Xet client stored under a hash.

        Read from a copy, since the client's process keeps the store locked.
        """
        from huggingface_hub.file_download import xet_get
        from huggingface_hub.utils._xet import XetFileData

        any_bucket = next(iter(self.buckets))
        with tempfile.TemporaryDirectory() as folder:
            copy, target = Path(folder) / "store", Path(folder) / "content"
            shutil.copytree(self.store, copy)
            route = f"{self.address}/api/buckets/{any_bucket}/xet-read-token?store={copy}"
            xet_get(
                incomplete_path=target,
                xet_file_data=XetFileData(file_hash=digest, refresh_route=route),
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
            return target.read_bytes()

    def sent(self, method, part):
        return [path for verb, path, _ in self.requests if verb == method and part in path]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        path, body = self.received()
        if self.hangs_up(path):
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif not self.hub.may_write:
            self.answer(403, {"error": "Forbidden: you need write access"})
        elif path.startswith(("/api/buckets/", "/api/jobs/")):
            self.change_bucket_or_submit(path.split("/"), body)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif "/preupload/" in path:
            self.preupload(path, json.loads(body)["files"])
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(body)["objects"])
        elif "/commit/" in path:
            self.commit(path, [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {"error": path})

    def do_PUT(self):
        path, body = self.received()
        if self.hangs_up(path):
            return
        sha256 = hashlib.sha256(body).hexdigest()
        self.hub.blobs[sha256] = body
        self.answer(200 if path.endswith(sha256) else 400, {})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _ = self.received()
        signed_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/whoami-v2":
            answer = {"name": "user", "type": "user", "orgs": []}
            self.answer(200, answer) if signed_in else self.answer(401, {"error": "Invalid"})
        elif path == "/api/agent-harnesses":
            self.answer(200, {})
        elif path.startswith(("/api/buckets/", "/buckets/", "/api/jobs/")):
            self.read_bucket_or_job(path, signed_in)
        elif path.startswith("/api/"):
            parts = path.removeprefix("/api/").split("/")
            self.describe("/".join(parts[:3]), *map(unquote, parts[3:]))
        elif "/resolve/" in path:
            repository, _, rest = path[1:].partition("/resolve/")
            revision, _, name = rest.partition("/")
            self.resolve(repository, revision, name, signed_in)
        else:
            self.answer(404, {"error": path})

    def read_bucket_or_job(self, path, signed_in):
        """Answer a request about a bucket, one of its files, or a job."""
        parts = path.removeprefix("/api").strip("/").split("/")
        if not signed_in:
            self.answer(401, {"error": "Invalid"})
        elif parts[0] == "jobs":
            jobs = [job for job in self.hub.jobs if job["owner"]["name"] == parts[1]]
            self.tell_of_jobs(jobs, *parts[2:])
        elif "/".join(parts[1:3]) not in self.hub.buckets:
            self.answer(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        else:
            self.read_bucket("/".join(parts[1:3]), *map(unquote, parts[3:]))

    def read_bucket(self, name, what="", *rest):
        files = self.hub.buckets[name]
        path = "/".join(rest)
        if what == "resolve":
            if path not in files:
                self.answer(404, {"error": path}, {"X-Error-Code": "EntryNotFound"})
                return
            digest, content = files[path]
            self.serve(content, {"ETag": f'"{digest}"'})
        elif what.startswith("xet-"):
            (folder,) = parse_qs(urlsplit(self.path).query).get("store", [self.hub.store])
            store, expiration, token = f"local://{folder}", 4_102_444_800, "xet"
            headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": token}
            headers["X-Xet-Token-Expiration"] = f"{expiration}"  # Python's client reads headers
            body = {"casUrl": store, "exp": expiration, "accessToken": token}  # Rust's, the body
            self.answer(200, body, headers)
        elif what == "tree":
            found = {file: entry for file, entry in files.items() if file.startswith(path)}
            entry = {"type": "file", "uploadedAt": "2026-01-01T00:00:00.000Z"}
            self.answer(
                200,
                [
                    {**entry, "path": file, "size": len(content), "xetHash": digest}
                    for file, (digest, content) in found.items()
                ],
            )
        else:
            about = {"id": name, "private": True, "createdAt": "2026-01-01T00:00:00.000Z"}
            self.answer(200, about | {"size": 0, "totalFiles": len(files)})

    def change_bucket_or_submit(self, parts, body):
        if parts[2] == "jobs":
            self.submit(parts[3], json.loads(body))
        else:
            self.change_bucket("/".join(parts[3:5]), map(json.loads, body.splitlines()))

    def change_bucket(self, name, changes):
        files = self.hub.buckets[name]
        for change in changes:
            if change["type"] == "deleteFile":
                files.pop(change["path"], None)
            else:
                digest = change["xetHash"]
                files[change["path"]] = digest, self.hub.stored(digest)
        self.answer(200, {"success": True})

    def submit(self, namespace, asked):
        """Keep a job as JobInfo describes it, with what was asked for under `asked`."""
        number = len(self.hub.jobs)
        job = {
            "id": f"job{number}",
            "createdAt": f"2026-01-01T00:00:{number:02d}.000Z",
            "owner": {"id": "1", "name": namespace, "type": "user"},
            "flavor": asked["flavor"],
            "labels": asked.get("labels"),
            "status": {"stage": "RUNNING", "message": None},
            "durations": {"schedulingSecs": 1, "runningSecs": 0, "totalSecs": 1},
            "asked": asked,
        }
        self.hub.jobs.append(job)
        self.answer(200, job)

    def tell_of_jobs(self, jobs, number=None):
        """Answer with all jobs that have the labels asked for, or with one, which is run first."""
        if number is None:
            labels = parse_qs(urlsplit(self.path).query).get("label", [])
            wanted = dict(label.split("=", 1) for label in labels)
            found = [job for job in jobs if wanted.items() <= (job["labels"] or {}).items()]
            self.answer(200, found[::-1])
            return
        (job,) = (job for job in jobs if job["id"] == number)
        if job["status"]["stage"] == "RUNNING":
            job["status"]["stage"] = self.hub.run_job(job)
        self.answer(200, job)

    def create(self, wanted):
        key = f"{wanted.get('type', 'model')}s/{wanted['organization']}/{wanted['name']}"
        is_new = key not in self.hub.repos
        if is_new:
            self.hub.repos[key] = Repo(wanted)
        self.answer(200 if is_new else 409, {"url": f"{self.hub.address}/{key}"})

    def preupload(self, path, files):
        _, current = self.hub.repos[path.removeprefix("/api/").split("/preupload/")[0]].at("main")
        answers = []
        for file in files:
            name = file["path"]
            is_large = name.endswith(LARGE)
            content = current.get(name)
            oid = None if content is None else git_sha(content)
            if content is not None and is_large:
                oid = hashlib.sha256(content).hexdigest()
            mode = "lfs" if is_large else "regular"
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": answers})

    def batch(self, objects):
        answers = []
        for wanted in objects:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                href = f"{self.hub.address}/blobs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": href}}
            answers.append(answer)
        self.answer(200, {"transfer": "basic", "objects": answers})

    def commit(self, path, lines):
        changes: dict[str, bytes | None] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        key = path.removeprefix("/api/").split("/commit/")[0]
        sha = self.hub.repos[key].commit(changes)
        url = f"{self.hub.address}/{key.removeprefix('models/')}/commit/{sha}"
        self.answer(200, {"commitUrl": url, "commitOid": sha})

    def describe(self, key, what="revision", revision="main", *folder):
        if key not in self.hub.repos:
            self.answer(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
            return
        found = self.hub.repos[key].at(revision)
        if found is None:
            self.answer(404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"})
            return
        sha, files = found
        if what == "tree":
            self.tree(files, "".join(f"{part}/" for part in folder if part))
        else:
            names = [{"rfilename": path} for path in files]
            self.answer(200, {"id": key.partition("/")[2], "sha": sha, "siblings": names})

    def tree(self, files, prefix):
        """List a folder, with all below it if `recursive` is asked for."""
        below = {path: content for path, content in files.items() if path.startswith(prefix)}
        if prefix and not below:
            self.answer(404, {"error": prefix}, {"X-Error-Code": "EntryNotFound"})
            return
        is_recursive = parse_qs(urlsplit(self.path).query).get("recursive") in (["true"], ["True"])
        folders = sorted({
            prefix + path.removeprefix(prefix).partition("/")[0]
            for path in below
            if "/" in path.removeprefix(prefix)
        })  # fmt: skip
        entries = [
            {"type": "directory", "path": path, "size": 0, "oid": git_sha(path.encode())}
            for path in folders
        ]
        entries += [
            self.entry(path, content)
            for path, content in below.items()
            if is_recursive or "/" not in path.removeprefix(prefix)
        ]
        self.answer(200, entries)

    def entry(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha(content)}
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, repository, revision, name, signed_in):
        is_model = not repository.startswith(("spaces/", "datasets/"))
        key = f"models/{repository}" if is_model else repository
        found = self.hub.repos[key].at(unquote(revision)) if key in self.hub.repos else None
        if found is None or unquote(name) not in found[1]:
            code = "RepoNotFound" if found is None else "EntryNotFound"
            self.answer(404, {"error": name}, {"X-Error-Code": code})
            return
        if key in self.hub.gated and not (signed_in and self.hub.accepts_terms):
            status = 403 if signed_in else 401
            self.answer(status, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return
        sha, files = found
        content = files[unquote(name)]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_sha(content)}"'}
        if name.endswith(LARGE) and self.hub.cdn_address:
            sha256 = hashlib.sha256(content).hexdigest()
            self.hub.blobs[sha256] = content
            location = f"{self.hub.cdn_address}/{sha256}/{name.rpartition('/')[2]}"
            self.answer(302, b"", headers | {"Location": location})
        else:
            self.serve(content, headers)

    def serve(self, content, headers):
        """Send a file, or the part of it that is asked for, unless something goes wrong."""
        name = urlsplit(self.path).path.rpartition("/")[2]
        hiccup = self.hub.hiccups[name].pop(0) if self.hub.hiccups[name] else None
        if isinstance(hiccup, int):
            after = {} if self.hub.retry_after is None else {"Retry-After": self.hub.retry_after}
            self.answer(hiccup, b"", after)
            return
        if hiccup == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        status, size = 200, len(content)
        if (asked := self.headers.get("Range")) is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else size
            headers = {**headers, "Content-Range": f"bytes {first}-{end - 1}/{size}"}
            content, status = content[int(first) : end], 206
        if hiccup == "truncate":
            self.close_connection = True
        part = content[: len(content) // 2] if hiccup == "truncate" else content
        self.answer(status, part, headers, size=len(content))

    def received(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, len(body)))
        return path, body

    def hangs_up(self, path):
        """Drop the connection if `broken` matches the path."""
        for part in self.hub.broken:
            if part in path:
                self.hub.broken.remove(part)
                self.close_connection = True
                return True
        return False

    def answer(self, status, content, headers=(), size=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class CdnHandler(Handler):
    """The other host, which serves large files."""

    def do_GET(self):
        sha256, _, name = self.path[1:].partition("/")
        self.hub.seen_by_cdn.append((name, self.headers.get("Authorization")))
        self.serve(self.hub.blobs[sha256], {"ETag": f'"{sha256}"'})


@contextmanager
def _serving(handler, hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving_hub(has_cdn=False):
    """Serve an empty Hub on loopback; large files by another host if `has_cdn`."""
    hub = Hub()
    with (
        tempfile.TemporaryDirectory() as hub.store,
        _serving(Handler, hub) as port,
        _serving(CdnHandler, hub) as cdn_port,
    ):
        hub.address = f"http://127.0.0.1:{port}"
        hub.cdn_address = f"http://localhost:{cdn_port}" if has_cdn else ""
        yield hub


def use_hub(hub, monkeypatch):
    """Let this process's client speak to the hub: it has read its environment at import."""
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
