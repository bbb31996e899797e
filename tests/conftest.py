"""Settings of all tests, and what several rooms' tests need."""

import os
import signal
import sys
import tempfile

import pytest
from hypothesis import settings

# Speed is shown by benchmarks; a busy machine makes no property false.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Several processes share few cores: threads that wait shall not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell's background job ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Servers of tests listen on loopback, where no proxy is to be asked for them.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1"

# What Hugging Face's libraries keep, the user's token too, is neither read nor written.
_HF_HOME = tempfile.TemporaryDirectory(prefix="hf-home-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _HF_HOME.name


def pytest_unconfigure():
    """Leaves nothing behind."""
    _HF_HOME.cleanup()


def pytest_collection_modifyitems(items):
    """Begins with the longest test, beside which all others can run."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


@pytest.fixture
def refused(monkeypatch, capfd):
    """Runs an entry point in this process, and returns what it says with exit code 2."""

    def refused(main, *words):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        from_tyro, _, ours = capfd.readouterr().err.partition("error: ")
        return ours or from_tyro

    return refused


@pytest.fixture
def bucket_server(monkeypatch):
    """A client of moto's S3 server on loopback, which is what the environment names."""
    import botocore.session
    from moto.server import ThreadedMotoServer

    from imagenet_rn50.utils.storage import filesystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = botocore.session.get_session().create_client("s3")
    filesystem.cache_clear()  # it knows the last test's server
    yield client
    for bucket in client.list_buckets()["Buckets"]:
        for entry in client.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
            client.delete_object(Bucket=bucket["Name"], Key=entry["Key"])
    client.close()
    server.stop()
