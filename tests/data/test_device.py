import pytest
import torch

from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.loader import on_device
from imagenet_rn50.data.transforms import normalise
from imagenet_rn50.recipe import DataRecipe
from tests.operators import Operators

pytestmark = pytest.mark.numeric

DATA = DataRecipe()


def batches(pin=False):
    generator = torch.Generator().manual_seed(0)
    made = []
    for size in (4, 4, 3):
        images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
        labels = torch.arange(size)
        if pin:
            images, labels = images.pin_memory(), labels.pin_memory()
        made.append(Batch(images, labels, labels))
    return made


def expected(batch):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (DATA.mean, DATA.std))
    return (batch.images / 255 - mean) / std


def assert_moved(moved, made, device):
    assert len(moved) == len(made)
    for batch, host in zip(moved, made, strict=True):
        assert batch.host is host
        assert batch.images.device.type == device
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(batch.images.cpu(), expected(host), rtol=1e-5, atol=1e-5)
        assert torch.equal(batch.labels.cpu(), host.labels)


def test_batches_are_normalised_in_their_order():
    made = batches()
    assert_moved(list(on_device(made, torch.device("cpu"), DATA.mean, DATA.std)), made, "cpu")


def test_mean_and_deviation_are_brought_to_a_device_once():
    made = batches()
    with torch.inference_mode():  # as evaluation does, before training or after it
        normalise(made[0].images, DATA.mean, DATA.std)
    with Operators() as launched:
        images = normalise(made[1].images, DATA.mean, DATA.std)
    assert launched.names == ["_to_copy", "mul_", "add_"]
    torch.testing.assert_close(images, expected(made[1]), rtol=1e-5, atol=1e-5)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (images * weight).sum().backward()  # an inference tensor would not do


@pytest.mark.gpu
def test_batches_copied_one_ahead_are_the_same():
    made = batches(pin=True)
    moved = list(on_device(made, torch.device("cuda"), DATA.mean, DATA.std))
    torch.cuda.synchronize()
    assert_moved(moved, made, "cuda")
