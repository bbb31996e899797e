import pytest

from imagenet_rn50.training import trainer
from tests.support import write_recipe, write_shards
from tests.training.trainers import RECIPE, TRAIN_SIZES, VALIDATION_SIZES, touch_plot


@pytest.fixture(autouse=True)
def _draw_plots_only_where_marked(request, monkeypatch):
    """Drawing plots takes seconds, and few tests look at them."""
    if request.node.get_closest_marker("plots") is None:
        monkeypatch.setattr(trainer, "draw_plots", touch_plot)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder / "shards", TRAIN_SIZES, VALIDATION_SIZES)
    write_recipe(folder, RECIPE)
    return folder


@pytest.fixture(scope="session")
def finished(tiny, trainers):
    """A run that nothing disturbed."""
    run = tiny / "undisturbed"
    trainers.train(tiny, run)
    return run
