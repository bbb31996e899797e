import pytest

from tests.training.trainers import Trainers


@pytest.fixture(scope="session")
def trainers(tmp_path_factory):
    """Starts trainers at once; one for all tests of a process."""
    with Trainers(tmp_path_factory.mktemp("logs")) as started:
        yield started
