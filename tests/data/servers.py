"""A web server on loopback that serves a folder, and misbehaves when told to."""

import hashlib
import socket
import struct
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

ROOT = "/sets/tiny"
HICCUPS = ("fail", "stall", "truncate", "truncate silently", "corrupt", "hang up", "reset")


class Server:
    """Serves `folder`; `hiccups[name]` says how its next answers about a file go wrong.

    A hiccup is one of HICCUPS, "redirect" (to itself), "page" (HTML with status 200), or a status.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.hiccups = defaultdict(list)
        self.requests = defaultdict(int)
        self.heads = defaultdict(int)
        self.lists = False  # whether it answers with a page of links for a folder
        self.token = None
        self.retry_after = None
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    owner: Server

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        if not self.path.startswith(ROOT):  # an S3 client's
            self.do_GET()
            return
        path = self.owner.folder / self.relative()
        self.owner.heads[path.name] += 1
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.end_headers()

    def relative(self):
        path = unquote(urlsplit(self.path).path)
        is_below = path.startswith(ROOT)
        return path.removeprefix(ROOT).lstrip("/") if is_below else path.rpartition("/")[2]

    def list(self, folder):
        names = [f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()]
        links = [f'<a href="{quote(name)}">{name}</a>' for name in names]
        page = "<html><a href='../'>Up</a> <a href='?C=N;O=D'>Name</a>" + " ".join(links)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(page.encode())

    def do_GET(self):
        parts = urlsplit(self.path)
        name = parts.path.rpartition("/")[2]
        path = self.owner.folder / self.relative()
        with self.owner.lock:
            self.owner.requests[name] += 1
            hiccup = self.owner.hiccups[name].pop(0) if self.owner.hiccups[name] else None
        if self.owner.token is not None and parts.query != f"token={self.owner.token}":
            self.send_error(403)
        elif isinstance(hiccup, int) or hiccup == "fail":
            self.refuse(503 if hiccup == "fail" else hiccup)
        elif hiccup == "redirect":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
        elif self.owner.lists and path.is_dir():
            self.list(path)
        elif not path.is_file():
            self.send_error(404)
        else:
            self.answer(path.read_bytes(), hiccup)

    def refuse(self, status):
        self.send_response(status)
        if self.owner.retry_after is not None:
            self.send_header("Retry-After", self.owner.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, content, hiccup):
        if hiccup == "hang up":
            return
        if hiccup == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if hiccup == "page":
            content = b"<html>Please log in</html>"
        self.send_response(200)
        if hiccup != "truncate silently":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if hiccup == "stall":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.owner.released.wait(30)
        elif hiccup in {"truncate", "truncate silently"}:
            self.wfile.write(content[: len(content) // 2])
        elif hiccup == "corrupt":
            self.wfile.write(bytes([content[0] ^ 1]) + content[1:])
        else:
            self.wfile.write(content)


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that was reset, or gave up, is no error of the server."""


@contextmanager
def serve(folder):
    server = Server(folder)
    http = Quiet(("127.0.0.1", 0), type("Handler", (Handler,), {"owner": server}))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.address = f"http://127.0.0.1:{http.server_port}{ROOT}"
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        thread.join()
        http.server_close()
