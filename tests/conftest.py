"""Settings and fixtures shared by all tests."""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.browser import CHROMIUM, SWITCHES
from tests.forked import ForkedWorkers

_TRAINER_SERVER = pytest.StashKey[Any]()

# Imported once, before the workers of `--processes` are forked, for tests that import them late.
_PRELOADED = ("evaluate", "matplotlib.figure", "moto.server", "s3fs")

# Compile the project and its tests once, not in each process of each run.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

gc.disable()  # until all is imported and collected: there is no garbage, and looking takes seconds

# No deadline: properties must also hold on busy machines.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Several processes share few cores, and the tests' models are tiny: more threads only cost time.
# One thread also makes it safe to fork after torch was used.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Background jobs of a shell ignore SIGINT, and child processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Gradio asks matplotlib for its backend, which would import pyplot to choose one.
os.environ.setdefault("MPLBACKEND", "agg")

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


def pytest_addoption(parser):
    parser.addoption("--processes", type=int, default=0, help="run the tests in forked processes")
    parser.addoption(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        help="how the tests and the commands that they run start processes, such as loader workers",
    )


def pytest_configure(config):
    if config.option.processes:
        config.pluginmanager.register(
            ForkedWorkers(config.option.processes, _group_of, _before_tests)
        )
    if method := config.option.start_method:
        multiprocessing.set_start_method(method, force=True)
        os.environ["START_METHOD"] = method
        folder = str(Path(__file__).parent / "start_method")  # read by Python at its start
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def _group_of(item):
    """Each file is run by one process, so that its fixtures are made once; one Space serves two."""
    file = item.nodeid.partition("::")[0]
    uses_space = file.endswith(("app/test_browser.py", "app/test_serving.py"))
    return "tests/app: the Space" if uses_space else file


def pytest_collection_finish(session):
    if session.config.option.processes:
        for name in _PRELOADED:
            importlib.import_module(name)
        if any("trainers" in item.fixturenames for item in session.items):
            from tests.training.trainers import warm_up

            warm_up()
    gc.freeze()  # a collection in a worker would touch, hence copy, what all of them share
    gc.enable()


def pytest_runtestloop(session):
    if not session.config.option.processes:
        _fork_early(session)


def _before_tests(session, number):
    """Prepare a forked worker: a Hugging Face cache of its own, and what it forks for the tests."""
    shared = os.environ["HF_HOME"]
    os.environ["HF_HOME"] = own = f"{shared}/{number}"
    for module in ("huggingface_hub.constants", "datasets.config"):  # have read the variable
        constants = vars(sys.modules[module]) if module in sys.modules else {}
        for name, value in constants.items():
            if str(value).startswith(shared):
                constants[name] = type(value)(str(value).replace(shared, own, 1))
    _fork_early(session)


def _fork_early(session):
    """Fork what starts trainers and the Space before the first test, which may start threads."""
    used = {name for item in session.items for name in item.fixturenames}
    if "trainers" in used:
        from tests.training.trainers import Server

        session.config.stash[_TRAINER_SERVER] = Server()
    if "space" in used:
        from tests.app.serving import STARTER, Starter

        session.config.stash[STARTER] = Starter()


@pytest.fixture(scope="session")
def trainers(tmp_path_factory, pytestconfig):
    """Starts trainers at once; one for all tests of a process."""
    from tests.training.trainers import Trainers

    with closing(pytestconfig.stash[_TRAINER_SERVER]) as server:
        yield Trainers(tmp_path_factory.mktemp("logs"), server)


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
    from imagenet_rn50.utils.storage import filesystem
    from tests.hub import TOKEN, serving_hub, use_hub

    with serving_hub(has_cdn=True) as running:
        use_hub(running, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        filesystem.cache_clear()
        yield running


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()
