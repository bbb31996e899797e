"""A web server on loopback that serves a folder, and misbehaves when told to."""

import socket
import struct
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

HICCUPS = ("fail", "stall", "truncate", "truncate silently", "corrupt", "hang up", "reset")


class Server:
    """Serves `folder`; `hiccups[name]` says how its next answers about a file go wrong.

    A hiccup is one of HICCUPS, "redirect" (to itself), "page" (HTML with status 200), or a status.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.hiccups = defaultdict(list)
        self.requests = defaultdict(int)
        self.token = None
        self.retry_after = None
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    owner: Server

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        name = parts.path.rpartition("/")[2]
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
        elif not (self.owner.folder / name).is_file():
            self.send_error(404)
        else:
            self.answer((self.owner.folder / name).read_bytes(), hiccup)

    do_HEAD = do_GET

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
    server.address = f"http://127.0.0.1:{http.server_port}/sets/tiny"
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        thread.join()
        http.server_close()
