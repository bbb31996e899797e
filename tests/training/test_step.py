"""One step of ours beside one step of plain PyTorch."""

import pytest
import torch
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, ResNet

from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.loader import on_device
from imagenet_rn50.data.transforms import normalise
from imagenet_rn50.model import to_torchvision
from imagenet_rn50.recipe import ModelRecipe, OptimizerRecipe, Recipe
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.trainer import Trainer
from tests.support import CLASSES

pytestmark = pytest.mark.numeric

NUM_CLASSES = len(CLASSES)


# In float64: BatchNorm over the few values of such small images multiplies rounding errors, which
# in float32 come to 2e-6 on one processor and to less on another. 1e-9 is far above float64's.
@pytest.mark.parametrize(("accumulation", "depths"), [(1, (1, 1, 1, 1)), (2, (3, 4, 6, 3))])
def test_a_step_equals_a_plain_step_on_torchvisions_resnet(
    accumulation, depths, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    recipe = Recipe(
        global_batch=4,
        micro_batch=4 // accumulation,
        model=ModelRecipe(depths=depths),
        optimizer=OptimizerRecipe(lr=0.1),
    )
    accelerator = make_accelerator()
    shards = LocalShards(tiny / "shards")
    trainer = Trainer(recipe, shards, tmp_path / "run", accelerator, create=False)
    trainer.state.model.double()
    theirs = ResNet(Bottleneck, list(depths), num_classes=NUM_CLASSES).double()
    theirs.load_state_dict(to_torchvision(trainer.state.model.state_dict()), strict=True)

    torch.manual_seed(1)
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, NUM_CLASSES, (4,))
    parts = list(zip(pictures.chunk(accumulation), labels.chunk(accumulation), strict=True))

    batches = on_device(
        [Batch(x, y, y) for x, y in parts],
        accelerator.device,
        recipe.data.mean,
        recipe.data.std,
    )
    doubles = (batch._replace(images=batch.images.double()) for batch in batches)
    trainer.train_step(doubles, 0.05, position=0)

    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for x, y in parts:
        logits = theirs(normalise(x, recipe.data.mean, recipe.data.std).double())
        loss = functional.cross_entropy(logits, y, label_smoothing=0.1)
        (loss / accumulation).backward()
        losses.append(loss.detach())
    optimizer.step()

    expected = torch.stack(losses).mean().item()
    assert trainer.meter.compute_and_reset(trainer.all_reduce_sum)["loss"] == pytest.approx(
        expected, rel=1e-5
    )
    ours = to_torchvision(trainer.state.model.state_dict())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=1e-9, atol=1e-9)
