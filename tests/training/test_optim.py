import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imagenet_rn50.training.optim import Ema
from tests.operators import Operators

pytestmark = pytest.mark.numeric


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def move(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor.add_(torch.randn_like(tensor))


def test_the_average_follows_its_formula_from_the_first_step_on():
    model = small_model()
    ema = Ema(model, decay=0.9)
    weights, statistics = [], []
    for seed in range(4):
        move(model, seed)
        ema.update(model)
        weights.append(model[0].weight.detach().clone())
        statistics.append(model[1].running_mean.clone())
    for values, name in ((weights, "0.weight"), (statistics, "1.running_mean")):
        expected = values[0]
        for value in values[1:]:
            expected = 0.9 * expected + 0.1 * value
        torch.testing.assert_close(ema.model.state_dict()[name], expected)


def test_an_average_that_was_saved_goes_on_as_if_it_had_not_stopped(tmp_path):
    model, straight = small_model(), Ema(small_model(), decay=0.9)
    for seed in range(3):
        move(model, seed)
        straight.update(model)
    tensors, metadata = straight.state_dict()
    resumed = Ema(small_model(), decay=0.9)
    save_file(tensors, tmp_path / "ema.safetensors", metadata)
    resumed.load(tmp_path / "ema.safetensors")
    move(model, 7)
    straight.update(model)
    resumed.update(model)
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_an_update_launches_two_operators_and_the_host_asks_the_device_nothing():
    model = small_model()
    ema = Ema(model, decay=0.9)
    for steady in (False, True):
        with Operators() as launched:
            ema.update(model)
        average = "_foreach_lerp_" if steady else "_foreach_copy_"
        assert launched.names == [average, "_foreach_copy_"]


def test_batches_are_counted_and_not_averaged():
    model = small_model()
    ema = Ema(model, decay=0.9)
    for _ in range(3):
        model(torch.zeros(2, 3, 4, 4))
        ema.update(model)
    assert ema.model.state_dict()["1.num_batches_tracked"] == 3
