import pytest

from tests.publishing.runs import make_run, save_checkpoint
from tests.support import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, train=[4], validation=[6, 5])
    return folder


@pytest.fixture
def run(tmp_path, shards):
    """A run with three checkpoints; the second was the best."""
    run = make_run(tmp_path, shards)
    for samples_seen, top1 in ((24, 0.25), (48, 0.625), (72, 0.5)):
        save_checkpoint(run, samples_seen, top1, is_best=samples_seen < 50)
    return run
