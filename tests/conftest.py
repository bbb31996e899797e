"""Settings and fixtures shared by all tests."""

import os
import signal
import sys
import tempfile

import pytest
from hypothesis import settings

# No deadline: properties must also hold on busy machines.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Several processes share few cores: waiting threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Background jobs of a shell ignore SIGINT, and child processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Test servers listen on loopback: bypass any proxy.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1"

# Isolate tests from the user's Hugging Face cache and token.
_HF_HOME = tempfile.TemporaryDirectory(prefix="hf-home-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _HF_HOME.name


def pytest_unconfigure():
    """Remove the temporary Hugging Face home."""
    _HF_HOME.cleanup()


def pytest_collection_modifyitems(items):
    """Start the files that start processes first: they take longest, and a worker takes a file."""
    files = {item.path for item in items if item.get_closest_marker("multiprocess")}
    items.sort(key=lambda item: item.path not in files)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Run each file on one worker, so that its fixtures are made once; one Space serves the app."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            uses_space = file.endswith(("app/test_browser.py", "app/test_serving.py"))
            return "space" if uses_space else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def trainers(tmp_path_factory):
    """Starts trainers at once; one for all tests of a process."""
    from tests.training.trainers import Trainers

    with Trainers(tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture
def refused(monkeypatch, capfd):
    """Run an entry point that must exit with code 2; return its error message."""

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
    """Start moto's S3 server, point the AWS environment variables to it and yield a client."""
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
    filesystem.cache_clear()  # caches the previous test's server
    yield client
    for bucket in client.list_buckets()["Buckets"]:
        for entry in client.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
            client.delete_object(Bucket=bucket["Name"], Key=entry["Key"])
    client.close()
    server.stop()


@pytest.fixture
def hub(monkeypatch):
    """Start the stand-in Hub with a host of its own for large files; point this process at it."""
    from huggingface_hub import constants

    from imagenet_rn50.utils.storage import filesystem
    from tests.hub import TOKEN, serving_hub

    with serving_hub(has_cdn=True) as running:
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.address + template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        filesystem.cache_clear()
        yield running
