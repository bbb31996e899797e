"""Each recipe beside its source: schedule and optimizer, by the source's own formulas."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from timm.optim import Lamb
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torchvision.models import ResNet50_Weights

from imagenet_rn50.classes import Classes
from imagenet_rn50.learning_rate import learning_rate
from imagenet_rn50.model import build_model, to_torchvision
from imagenet_rn50.recipe import RECIPES, ModelRecipe, OptimizerRecipe, load_recipe, recipe_names
from imagenet_rn50.training.optim import build_optimizer

pytestmark = pytest.mark.numeric


def rates_of(scheduler, optimizer, count):
    """Returns the rates that one of torch's schedulers gives to `count` steps."""
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def plain_sgd(lr):
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def assert_a_onecycle(name, cycle_epochs, pct_start, max_lr, end):
    """Compares with torch's OneCycleLR at every one of 20 steps an epoch."""
    recipe, steps = load_recipe(name), 20 * cycle_epochs
    optimizer = plain_sgd(max_lr)
    # Torch's warm-up lasts pct_start * total_steps - 1 steps, and its last step has the last rate.
    theirs = OneCycleLR(
        optimizer,
        max_lr,
        total_steps=steps + 1,
        pct_start=(pct_start * steps + 1) / (steps + 1),
        final_div_factor=(1 / 25) / end,
        cycle_momentum=False,
    )
    for step, rate in enumerate([*rates_of(theirs, optimizer, steps), theirs.get_last_lr()[0]]):
        assert learning_rate(recipe, step / 20) == pytest.approx(rate)


def test_the_digits_have_a_onecycle():
    assert_a_onecycle("digits", 12, pct_start=3 / 12, max_lr=0.3, end=4e-6)


def test_imagenette_has_fastais_onecycle():
    # fit_one_cycle(20, 3e-3) with its defaults: pct_start, div and div_final
    assert_a_onecycle("imagenette-10min", 20, pct_start=0.25, max_lr=3e-3, end=1e-5)


def test_onecycle_plateau_is_a_onecycle_and_level_after_it():
    assert_a_onecycle("onecycle-plateau", 45, pct_start=14 / 45, max_lr=0.175, end=0.1)
    recipe = load_recipe("onecycle-plateau")
    for epoch in range(45, 68):
        assert learning_rate(recipe, epoch) == pytest.approx(0.0175)
        assert learning_rate(recipe, epoch, num_cuts=1) == pytest.approx(0.00175)


def test_imagenet_100_has_its_sources_cosine_after_its_warm_up():
    def theirs(epoch, epochs, lr=0.2, lr_decay_rate=0.1):  # adjust_learning_rate
        eta_min = lr * lr_decay_rate**3
        return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    recipe = load_recipe("imagenet100-1h")
    for step in range(20 * 14 + 1):
        rate = learning_rate(recipe, 2 + step / 20)
        assert rate == pytest.approx(theirs(step / 20, epochs=14))
    assert learning_rate(recipe, 0) == pytest.approx(0.01)  # warmup_from


def test_the_recipe_for_16_gb_is_rn50_16ep_but_for_its_micro_batch():
    small, large = load_recipe("rn50-16ep-16gb"), load_recipe("rn50-16ep")
    assert small == large.model_copy(update={"micro_batch": large.micro_batch // 2})


@pytest.mark.parametrize("epochs", [16, 32, 88])
def test_ffcvs_recipes_follow_ffcvs_own_line(epochs):
    recipe = load_recipe(f"rn50-{epochs}ep")
    peak = 1.7 * recipe.global_batch / 4096
    for step in range(100 * epochs + 1):
        epoch = step / 100
        theirs = np.interp([epoch], [0, 2, epochs], [1e-4 * peak, peak, 0])[0]
        assert learning_rate(recipe, epoch) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(
    ("epochs", "start_ramp", "end_ramp"), [(16, 11, 13), (32, 23, 27), (88, 65, 76)]
)
def test_ffcvs_crops_grow_as_ffcvs_do(epochs, start_ramp, end_ramp):
    data = load_recipe(f"rn50-{epochs}ep").data
    for epoch in range(epochs):
        theirs = int(np.round(np.interp([epoch], [start_ramp, end_ramp], [160, 192])[0] / 32)) * 32
        assert data.size_at(epoch) == theirs


def test_the_classic_recipe_is_torchvisions_step_rule():
    recipe, optimizer = load_recipe("classic-90ep"), plain_sgd(0.1)
    rates = rates_of(StepLR(optimizer, step_size=30, gamma=0.1), optimizer, 90)
    for epoch, rate in enumerate(rates):
        assert learning_rate(recipe, epoch) == pytest.approx(rate)
        assert learning_rate(recipe, epoch + 0.99) == pytest.approx(rate)


def test_torchvisions_second_recipe_is_its_own_cosine_after_a_warm_up():
    recipe, optimizer = load_recipe("tv2-600ep"), plain_sgd(0.5)
    warmup = LinearLR(optimizer, start_factor=0.01, total_iters=5)
    cosine = CosineAnnealingLR(optimizer, T_max=600 - 5)
    theirs = SequentialLR(optimizer, [warmup, cosine], milestones=[5])
    for epoch, rate in enumerate(rates_of(theirs, optimizer, 600)):
        assert learning_rate(recipe, epoch) == pytest.approx(rate, rel=1e-6, abs=1e-9)


def test_torchvisions_second_recipe_averages_as_much_over_32_steps_as_its_script():
    adjust = 1024 * 32 / 600  # world_size * batch_size * model_ema_steps / epochs
    theirs = 1.0 - min(1.0, (1.0 - 0.99998) * adjust)
    decay = load_recipe("tv2-600ep").ema_decay
    assert decay is not None
    assert decay**32 == pytest.approx(theirs, abs=1e-6)


def test_nvidias_recipe_meets_its_own_once_an_epoch():
    def theirs(epoch, base_lr=2.048, warmup_length=8, epochs=90, end_lr=0):
        if epoch < warmup_length:
            return base_lr * (epoch + 1) / warmup_length
        e, es = epoch - warmup_length, epochs - warmup_length
        return end_lr + 0.5 * (1 + np.cos(np.pi * e / es)) * (base_lr - end_lr)

    recipe = load_recipe("nvidia-90ep")
    for epoch in range(90):
        # The rate that they hold for an epoch is ours at its end, while it rises, and at its start.
        met = epoch + 1 if epoch < 8 else epoch
        assert learning_rate(recipe, met) == pytest.approx(theirs(epoch))


def test_procedure_a3_is_its_cosine_counted_from_the_end_of_the_warm_up():
    def timms(epoch, peak=8e-3, lowest=1e-6, warmup_lr=1e-4):
        if epoch < 5:
            return warmup_lr + epoch * (peak - warmup_lr) / 5
        return lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * epoch / 100))

    def mmpretrains(epoch, peak=8e-3, lowest=1e-6):
        return lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * (epoch - 5) / 95))

    recipe = load_recipe("a3-100ep")
    for epoch in range(101):
        rate = learning_rate(recipe, epoch)
        expected = timms(epoch) if epoch < 5 else mmpretrains(epoch)
        assert rate == pytest.approx(expected)
        assert rate == pytest.approx(timms(epoch), abs=0.05 * 8e-3)


def sgd(lr, *, momentum=0.9):
    return {"lr": lr, "momentum": momentum, "dampening": 0, "nesterov": False}


@dataclass(frozen=True)
class Source:
    """What a source's script gives to its optimizer, for torchvision's names of parameters."""

    group: dict[str, Any]
    decay: Any  # of a name
    differs: tuple[str, ...] = ()  # ends of the names that our header says are decayed otherwise


def is_norm(name):
    return "bn" in name or "downsample.1" in name


BIAS_AND_SHORTCUTS = ("fc.bias", "downsample.1.weight", "downsample.1.bias")
FFCV = Source(sgd(1.7 / 4), lambda n: 0.0 if "bn" in n else 1e-4, BIAS_AND_SHORTCUTS)
SOURCES = {
    "classic-90ep": Source(sgd(0.1), lambda n: 1e-4),
    "onecycle-plateau": Source(sgd(0.175), lambda n: 1e-4),
    "imagenet100-1h": Source(sgd(0.2), lambda n: 1e-4),
    "imagenette-10min": Source(
        # fastai decays no norms and no biases: wd_bn_bias
        {"lr": 3e-3, "betas": (0.9, 0.99), "amsgrad": False},
        lambda n: 0.0 if is_norm(n) or n.endswith(".bias") else 0.01,
    ),
    "rn50-16ep": FFCV,
    "rn50-16ep-16gb": FFCV,
    "rn50-32ep": FFCV,
    "rn50-88ep": FFCV,
    "nvidia-90ep": Source(
        sgd(2.048, momentum=0.875),
        lambda n: 0.0 if "bn" in n else 3.0517578125e-05,
        BIAS_AND_SHORTCUTS,
    ),
    "tv2-600ep": Source(sgd(0.5), lambda n: 0.0 if is_norm(n) else 2e-5, ("fc.bias",)),
    "a3-100ep": Source(
        # timm's defaults, which the procedure left as they were
        {"lr": 8e-3, "betas": (0.9, 0.999), "eps": 1e-6, "max_grad_norm": 1.0, "trust_clip": False},
        lambda n: 0.0 if is_norm(n) or n.endswith(".bias") else 0.02,
    ),
    "digits": Source(
        {**sgd(0.3), "nesterov": True},
        lambda n: 0.0 if is_norm(n) or n.endswith(".bias") else 5e-4,
    ),
}


@pytest.fixture(scope="module")
def resnet50():
    """A ResNet-50 without memory, and torchvision's name of each of its parameters."""
    wnids = tuple(f"n{number:08d}" for number in range(1000))
    with torch.device("meta"):
        model = build_model(ModelRecipe(), Classes(wnids, wnids))
        theirs = torchvision.models.resnet50()
    names = {id(p): name for name, p in to_torchvision(dict(model.named_parameters())).items()}
    assert set(names.values()) == {name for name, _ in theirs.named_parameters()}
    return model, names


@pytest.mark.parametrize("name", recipe_names())
def test_optimizer_and_decay_of_each_parameter_are_the_sources(name, resnet50):
    model, names = resnet50
    source, recipe = SOURCES[name], load_recipe(name)
    optimizer = build_optimizer(model, recipe.optimizer)
    kinds = {"a3-100ep": Lamb, "imagenette-10min": AdamW}
    assert type(optimizer) is kinds.get(name, SGD)
    decay: dict[str, float] = {}
    for group in optimizer.param_groups:
        assert {key: group[key] for key in source.group} == source.group
        decay |= {names[id(p)]: group["weight_decay"] for p in group["params"]}
    otherwise = {n for n in names.values() if decay[n] != source.decay(n)}
    assert otherwise == {n for n in names.values() if n.endswith(source.differs or "nothing")}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_decays_otherwise_says_so_in_its_header(name):
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    header = " ".join(text.replace("#", "").split())
    assert ("classifier's bias" in header) == ("fc.bias" in SOURCES[name].differs)
    assert ("norms of shortcuts" in header) == ("downsample.1.bias" in SOURCES[name].differs)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("classic-90ep", ResNet50_Weights.IMAGENET1K_V1),
        ("tv2-600ep", ResNet50_Weights.IMAGENET1K_V2),
    ],
)
def test_what_torchvision_published_and_how_it_evaluates_is_what_the_recipe_says(name, weights):
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"{weights.meta['_metrics']['ImageNet-1K']['acc@1']:.3f}% top-1" in header
    data, transforms = load_recipe(name).data, weights.transforms()
    assert [data.eval_size] == transforms.crop_size
    assert [data.eval_resize] == transforms.resize_size
    assert (list(data.mean), list(data.std)) == (transforms.mean, transforms.std)


def test_lamb_steps_as_its_formula_does():
    """You et al. 2020, algorithm 2, after clipping the whole gradient to a norm of 1."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4, dtype=torch.float64)
    recipe = OptimizerRecipe(name="lamb", lr=0.1, weight_decay=0.02)
    weights = [p.detach().clone() for p in model.parameters()]
    m, v = [torch.zeros_like(p) for p in weights], [torch.zeros_like(p) for p in weights]
    optimizer = build_optimizer(model, recipe)
    for step in range(1, 6):
        gradients = [torch.randn_like(p) * 10 ** (step - 3) for p in weights]
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()

        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for k, gradient in enumerate(gradients):
            clipped = gradient / max(1.0, norm.item())
            m[k] = 0.9 * m[k] + 0.1 * clipped
            v[k] = 0.999 * v[k] + 0.001 * clipped**2
            update = (m[k] / (1 - 0.9**step)) / ((v[k] / (1 - 0.999**step)).sqrt() + 1e-6)
            trust = 1.0
            if weights[k].ndim > 1:  # decayed, and only then scaled
                update = update + 0.02 * weights[k]
                trust = (weights[k].norm() / update.norm()).item()
            weights[k] = weights[k] - 0.1 * trust * update
    for ours, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-6, atol=1e-9)
