import errno
import os
import time

import pytest
import torch

from imagenet_rn50.data.transforms import TrainTransform
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.tools import measure
from imagenet_rn50.tools.doctor import device_blockers
from imagenet_rn50.tools.measure import (
    activation_bytes,
    make_step,
    measure_all_reduce,
    measure_device,
)
from imagenet_rn50.utilisation import training_flops
from tests.support import needs_fork, write_recipe, write_shards

NAP = 0.02  # seconds per image


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder / "shards", train=[40, 30], validation=[6])
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def train(tiny):
    return Manifest.load(tiny / "shards").split(TRAIN)


@pytest.fixture(scope="module")
def recipe(tiny):
    return load_recipe(str(tiny / "tiny.yaml"))


def is_in_memory(path, offset=0):
    """Whether a byte of a file can be had without its disk."""
    if not hasattr(os, "RWF_NOWAIT"):
        pytest.skip("only Linux says")
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            pytest.skip(f"this filesystem does not say: {error}")
    return True


def test_shards_are_out_of_memory_when_their_reading_is_timed(tiny, train, monkeypatch):
    shards = [tiny / "shards" / shard.name for shard in train.shards]
    for shard in shards:
        shard.read_bytes()
    assert all(map(is_in_memory, shards))
    before = []
    real = measure._read_all

    def watching(sizes, seconds):
        before.append([is_in_memory(shard) for shard in shards])
        return real(sizes, seconds)

    monkeypatch.setattr(measure, "_read_all", watching)
    for _ in range(10):  # now and then a busy kernel keeps a page
        before.clear()
        time.sleep(0.05)
        rates = measure.measure_disk(LocalShards(tiny / "shards"), train, seconds=60)
        if not any(map(any, before)):
            break
    assert before == [[False, False], [False, False]]
    assert rates.num_bytes == sum(shard.num_bytes for shard in train.shards)
    assert not rates.is_enough


def test_reading_stops_when_its_time_is_up(monkeypatch):
    def slow():
        for _ in range(1000):
            time.sleep(0.01)
            yield 2**20

    num_bytes, rate = measure._read_all(slow(), seconds=0.1)
    assert 1 <= num_bytes / 2**20 <= 11
    assert rate <= 100


def was_dropped(shards):
    """Drop shards from memory; a busy kernel keeps a page now and then."""
    time.sleep(0.05)
    for shard in shards:
        measure._drop_from_cache(shard)
    return not any(map(is_in_memory, shards))  # to ask again would find what this made it read


def test_shards_are_in_memory_when_the_loader_is_timed(tiny, train, recipe, monkeypatch):
    shards = [tiny / "shards" / shard.name for shard in train.shards]
    measure.measure_disk(LocalShards(tiny / "shards"), train, seconds=60)
    assert any(was_dropped(shards) for _ in range(10))
    before = []

    def watching(loader, num_workers, seconds):
        pages = [(path, at) for path in shards for at in range(0, path.stat().st_size, 4096)]
        before.append(all(is_in_memory(path, at) for path, at in pages))
        return 1.0

    monkeypatch.setattr(measure, "_rate", watching)
    measure.measure_decoding(LocalShards(tiny / "shards"), train, recipe, num_workers=2, seconds=1)
    assert before == [True, True]


def test_the_loader_is_timed_on_as_many_first_shards_as_memory_holds(tiny, train, monkeypatch):
    first, second = (shard.num_bytes for shard in train.shards)
    assert measure.first_shards(train, first + second).num_samples == 70
    assert measure.first_shards(train, first + second - 1).num_samples == 40
    assert measure.first_shards(train, 1).shards == train.shards[:1]


@pytest.mark.multiprocess
def test_crops_do_not_grow_while_the_loader_is_timed(tiny, train, recipe, monkeypatch):
    grow = {"final_size": 64, "growth": (0, 1)}
    growing = recipe.model_copy(update={"data": recipe.data.model_copy(update=grow)})
    assert growing.data.size_at(0) != growing.data.size_at(1)
    sizes: set[int] = set()

    def looking(loader, num_workers, seconds):
        batches = iter(loader)
        sizes.update(next(batches).images.shape[-1] for _ in range(3 * 70 // 4))
        return 1.0

    monkeypatch.setattr(measure, "_rate", looking)
    rates = measure.measure_decoding(
        LocalShards(tiny / "shards"), train, growing, num_workers=0, seconds=1
    )
    assert sizes == {rates.size} == {growing.data.size_at(0)}


@needs_fork
@pytest.mark.multiprocess
def test_the_loader_is_measured_at_the_speed_of_its_workers(tiny, train, recipe, monkeypatch):
    def napping(self, content, epoch, index, out=None):
        time.sleep(NAP)
        return out.zero_()

    monkeypatch.setattr(TrainTransform, "__call__", napping)
    rates = measure.measure_decoding(
        LocalShards(tiny / "shards"), train, recipe, num_workers=2, seconds=1
    )
    assert 0.4 / NAP < rates.one_worker <= 1.25 / NAP
    assert 1.3 * rates.one_worker < rates.all_workers <= 2.5 / NAP
    assert rates.size == recipe.data.train_size


def test_a_measured_step_is_a_step_of_training(recipe):
    torch.manual_seed(0)
    faster = recipe.model_copy(update={"label_smoothing": 0.0})
    step = make_step(torch.device("cpu"), faster, "no", batch=4, size=16)
    loss_of, optimizer = (cell.cell_contents for cell in reversed_cells(step))
    first = loss_of().item()
    for _ in range(20):
        step()
    assert loss_of().item() < first / 2
    assert all(p.grad is None for group in optimizer.param_groups for p in group["params"])


def test_a_measured_step_mixes_clips_accumulates_and_averages_as_the_recipe_says(recipe):
    torch.manual_seed(0)
    changes = {"mixup_alpha": 0.2, "ema_decay": 0.5, "label_smoothing": 0.0}
    clipped = recipe.optimizer.model_copy(update={"clip_norm": 1e-6})
    step = make_step(
        torch.device("cpu"),
        recipe.model_copy(update=changes | {"optimizer": clipped}),
        "no",
        batch=4,
        size=16,
        accumulation=2,
    )
    loss_of, _ = (cell.cell_contents for cell in reversed_cells(step))
    first = loss_of().item()
    for _ in range(5):
        step()
    assert loss_of().item() == pytest.approx(first, abs=1e-3)  # so short are clipped steps


def reversed_cells(step):
    """Returns the loss function and the optimizer that a step closes over."""
    cells = dict(zip(step.__code__.co_freevars, step.__closure__, strict=True))
    return cells["loss"], cells["optimizer"]


def test_the_cpu_is_measured_where_there_is_no_gpu(recipe):
    rates = measure_device(torch.device("cpu"), recipe, seconds=0.05)
    assert rates.steps.keys() == {"no"}
    assert rates.steps["no"] > 0
    assert (rates.batch, rates.size) == (4, 16)
    flops = training_flops(recipe.model, 16, 1000) * rates.steps["no"]
    assert rates.utilisation("no") == {"tflops": pytest.approx(flops / 1e12)}
    assert rates.copy_gb is None


def test_a_cpu_is_timed_with_the_micro_batch_of_the_recipe(recipe, monkeypatch):
    seen = []

    def remembering(device, recipe, precision, batch, size, num_classes):
        seen.append((batch, num_classes))
        return make_step(device, recipe, precision, batch, size, num_classes)

    monkeypatch.setattr(measure, "make_step", remembering)
    large = recipe.model_copy(update={"global_batch": 96, "micro_batch": 96})
    rates = measure_device(torch.device("cpu"), large, seconds=0.01, num_classes=3)
    assert rates.batch == 96
    assert seen[-1] == (96, 3)


def test_a_micro_batch_that_memory_cannot_hold_is_a_blocker_and_not_a_killed_process(
    recipe, monkeypatch
):
    few, many = (
        activation_bytes(make_step(torch.device("cpu"), recipe, "no", batch, 16))
        for batch in (2, 64)
    )
    assert many == pytest.approx(32 * few, rel=0.1)
    monkeypatch.setattr(measure, "available_memory", lambda: few)
    rates = measure_device(torch.device("cpu"), recipe, seconds=0.01)
    assert (rates.steps, rates.batch) == ({"no": 0.0}, 4)
    assert "micro batch of 4" in next(device_blockers(recipe, [rates]))


def test_a_slow_step_is_timed_once(recipe, monkeypatch):
    monkeypatch.setattr(measure, "_SLOW_STEP", 0.0)
    steps = []
    rate = measure._step_rate(torch.device("cpu"), lambda: steps.append(1), 8, seconds=60)
    assert len(steps) == 1
    assert rate > 0


@pytest.mark.slow
@pytest.mark.multiprocess
def test_gradients_are_reduced_over_processes():
    assert 0 < measure_all_reduce(2, backend="gloo", num_floats=1000) < 1000


@pytest.mark.gpu
def test_a_gpu_is_measured_in_every_precision(recipe):
    rates = measure_device(torch.device("cuda", 0), recipe, seconds=0.5)
    assert {"no", "fp16"} <= rates.steps.keys()
    assert all(rate > 0 for rate in rates.steps.values())
    assert all(rates.utilisation(name)["tflops"] > 0 for name in rates.steps)
    assert rates.copy_gb
    assert rates.copy_gb > 0


@pytest.mark.gpu
@pytest.mark.multiprocess
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gradients_are_reduced_over_gpus():
    assert measure_all_reduce(2, num_floats=25_557_032) > 0
