import shutil

import pytest
import torch

from imagenet_rn50.training import trainer
from tests.support import write_recipe, write_shards
from tests.training.resuming.support import RECIPE, train
from tests.training.trainers import steps_saved


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder / "shards", train=[8, 6, 7], validation=[6, 5])
    write_recipe(folder, RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _on_the_cpu_without_pictures(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(trainer, "draw_plots", lambda run: None)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices gain nothing from threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tiny, _one_thread):
    """A run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.setattr(trainer, "draw_plots", lambda run: None)
        train(tiny, tiny / "undisturbed")
    return tiny / "undisturbed"


@pytest.fixture(scope="module")
def stopped_once(tiny, _one_thread):
    run = tiny / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.setattr(trainer, "draw_plots", lambda run: None)
        train(tiny, run, stop_at_step=5, checkpoint_steps=1, keep_last=3)
    assert steps_saved(run) == [24, 32, 40]
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that stands at step 5, with checkpoints of steps 3, 4 and 5."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")
