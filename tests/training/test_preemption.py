import socket
import time

from imagenet_rn50.training import preemption
from imagenet_rn50.training.preemption import listening, listens


def test_a_service_that_does_not_answer_is_told_once_and_ends_nothing(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}")
    requested: list[str] = []
    with listening(requested.append, enabled=True, poll_seconds=0.01):
        time.sleep(0.5)
    assert not requested
    assert capsys.readouterr().out.count("cannot be read") == 1


def test_it_listens_on_ec2_and_where_asked_to(monkeypatch, tmp_path):
    vendor = tmp_path / "sys_vendor"
    vendor.write_text("Amazon EC2\n")
    monkeypatch.setattr(preemption, "_VENDOR", vendor)
    assert listens("auto")
    assert not listens("off")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert not listens("auto")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    vendor.write_text("LENOVO\n")
    assert not listens("auto")
    assert listens("on")
