"""EC2's notice that a spot instance ends."""

import http.server
import json
import signal
import socket
import socketserver
import threading
import time

import pytest

from imagenet_rn50.runs.checkpoint import newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.training import preemption
from imagenet_rn50.training.preemption import POLL_SECONDS, is_spot_watched, watch_spot_notice
from tests.training.trainers import EXIT_INTERRUPTED, wait_until


def test_a_service_that_does_not_answer_is_told_once_and_ends_nothing(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}")
    requested: list[str] = []
    with watch_spot_notice(requested.append, enabled=True, poll_seconds=0.01):
        time.sleep(0.5)
    assert not requested
    assert capsys.readouterr().out.count("cannot be read") == 1


def test_a_garbled_answer_is_told_once_and_the_notice_after_it_is_heard(monkeypatch, capsys):
    notice = json.dumps({"action": "stop", "time": "2030-01-02T03:04:05Z"})
    answers = iter([b"garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\ntoken", notice.encode()])

    class Garbled(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip():
                pass
            answer = next(answers)
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" * answer.startswith(b"{") + answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Garbled) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        requested: list[str] = []
        with watch_spot_notice(requested.append, enabled=True, poll_seconds=0.01):
            wait_until(lambda: requested)
        server.shutdown()
    assert requested == ["EC2 spot notice: stop at 2030-01-02T03:04:05Z"]
    assert capsys.readouterr().out.count("cannot be read") == 1


def test_it_is_spot_watched_on_ec2_and_where_asked_to(monkeypatch, tmp_path):
    vendor = tmp_path / "sys_vendor"
    vendor.write_text("Amazon EC2\n")
    monkeypatch.setattr(preemption, "_VENDOR", vendor)
    assert is_spot_watched("auto")
    assert not is_spot_watched("off")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert not is_spot_watched("auto")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    vendor.write_text("LENOVO\n")
    assert not is_spot_watched("auto")
    assert is_spot_watched("on")


class Metadata(http.server.BaseHTTPRequestHandler):
    """Speaks as EC2's instance metadata service does, version 2."""

    notice: str | None = None
    tokens = ["first", "second"]
    asked: list[str] = []

    def do_PUT(self):
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(200, self.tokens[0])

    def do_GET(self):
        assert self.path == "/latest/meta-data/spot/instance-action"
        token = self.headers["X-aws-ec2-metadata-token"]
        Metadata.asked.append(token)
        if token != self.tokens[0]:
            self._answer(401, "")
        elif Metadata.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, Metadata.notice)

    def log_message(self, *arguments):
        pass

    def _answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata_service():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.multiprocess
def test_ec2s_notice_saves_within_seconds(tiny, trainers, metadata_service):
    run = tiny / "spot"
    more = ("--epochs", "20000", "--spot", "on")
    trainer = trainers.start(tiny, run, *more, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata_service)
    trainer.until_trained()
    Metadata.tokens.pop(0)  # the one in use is withdrawn
    Metadata.notice = json.dumps({"action": "terminate", "time": "2030-01-02T03:04:05Z"})
    announced = time.monotonic()
    trainer.send(signal.SIGSTOP)  # until it is time to poll, it need not train
    time.sleep(POLL_SECONDS)
    trainer.send(signal.SIGCONT)
    assert trainer.wait() == EXIT_INTERRUPTED, trainer.said()
    assert time.monotonic() - announced < 30
    assert Metadata.asked[-2:] == ["first", "second"]
    reason = "EC2 spot notice: terminate at 2030-01-02T03:04:05Z"
    assert read_metrics(run, "stop")[-1]["reason"] == reason
    assert newest_checkpoint(run / "checkpoints") is not None
