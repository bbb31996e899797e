import re
from dataclasses import replace
from pathlib import Path

import pytest

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.tools.doctor import (
    PackedShards,
    bottleneck,
    device_blockers,
    machine_blockers,
    needed_shared_memory,
    stages,
)
from imagenet_rn50.tools.measure import DecodingRates, DeviceRates, DiskRates
from imagenet_rn50.tools.system_info import Machine

ROOT = Path(__file__).parents[2]
GIB = 2**30
MACHINE = Machine(48, 192 * GIB, 96 * GIB, 65536, "580.95.05", {})
IMAGENET = PackedShards(
    1_281_167, 149_000_000_000, 50_000, "xfs /dev/nvme1n1 (Amazon Elastic Block Store)"
)
GP3 = DiskRates(sequential=125, random=20, num_bytes=GIB)
FAST_DISK = replace(GP3, sequential=2000)
LOADER = DecodingRates(one_worker=400, all_workers=14_000, num_workers=32, size=224)
L4 = DeviceRates("NVIDIA L4", 24 * GIB, 12.0, {"no": 130.0, "bf16": 300.0}, 256, 224)


def sentence(machine=MACHINE, packed=IMAGENET, disk=FAST_DISK, decoding=LOADER, devices=(L4,) * 4):
    found = stages(machine, packed, disk, decoding, list(devices))
    return bottleneck(found, machine, packed)


def test_a_default_gp3_volume_is_the_bottleneck_of_four_l4():
    small = replace(MACHINE, memory_bytes=64 * GIB)
    said = sentence(small, disk=GP3)
    assert said.startswith("The bottleneck is the volume of the shards: 1,127 images/s")
    assert "(the GPUs: 1,200)" in said
    assert "`aws ec2 modify-volume --throughput`" in said
    assert "first epoch" not in said


def test_a_volume_matters_in_the_first_epoch_only_where_memory_holds_the_shards():
    assert "in the first epoch; later epochs read from memory" in sentence(disk=GP3)


def test_a_loader_with_idle_cores_is_given_more_workers():
    slow = replace(LOADER, all_workers=800.0, num_workers=4)
    said = sentence(decoding=slow)
    assert said.startswith("The bottleneck is the loader: 800 images/s")
    assert "--workers 11 (48 cores, 4 ranks)" in said
    assert "--workers" not in sentence(decoding=replace(slow, num_workers=44))


def test_the_workers_that_the_configuration_of_four_l4_starts_are_enough():
    head = (ROOT / "accelerate_configs/g6_12xlarge.yaml").read_text(encoding="utf-8")
    (workers,) = re.findall(r"--workers (\d+)", head)
    (ranks,) = re.findall(r"^num_processes: (\d+)", head, re.MULTILINE)
    started = replace(LOADER, all_workers=800.0, num_workers=int(workers) * int(ranks))
    assert "--workers" not in sentence(decoding=started)
    one_less = replace(started, num_workers=started.num_workers - int(ranks))
    assert f"--workers {workers} " in sentence(decoding=one_less)


def test_gpus_that_are_the_bottleneck_get_the_faster_precision():
    said = sentence()
    assert said.startswith("The bottleneck is the GPUs: 1,200 images/s")
    assert "--mixed_precision bf16" in said


def test_a_volume_with_too_little_data_is_not_the_bottleneck():
    little = replace(GP3, sequential=1.0, num_bytes=GIB // 100)
    assert sentence(disk=little).startswith("The bottleneck is the GPUs")


def problems(machine=MACHINE, num_workers=8):
    return list(machine_blockers(machine, Recipe(), 4, num_workers))


def test_a_machine_that_fits_has_no_blocker():
    assert problems() == []


def test_too_little_shared_memory_blocks_exactly_below_what_the_batches_take():
    needed = needed_shared_memory(Recipe(), 4, 8)
    assert needed == 4 * (2 * 8 + 2) * 256 * 3 * 224 * 224
    assert problems(replace(MACHINE, shared_memory_bytes=needed)) == []
    (problem,) = problems(replace(MACHINE, shared_memory_bytes=needed - 1))
    assert "/dev/shm has 2.77 GB free" in problem
    assert "--shm-size 3g" in problem


def test_batches_made_in_the_training_process_need_no_shared_memory():
    assert problems(replace(MACHINE, shared_memory_bytes=0), num_workers=0) == []


@pytest.mark.parametrize(("open_files", "blocks"), [(128, True), (1024, False), (-1, False)])
def test_too_few_open_files_block(open_files, blocks):
    found = problems(replace(MACHINE, open_files=open_files))
    assert any("ulimit -n 256" in problem for problem in found) == blocks


def test_a_micro_batch_that_fits_in_no_precision_blocks():
    half = replace(L4, steps={"no": 0.0, "bf16": 300.0})
    assert list(device_blockers(Recipe(), [half])) == []
    full = replace(L4, steps={"no": 0.0, "bf16": 0.0})
    (problem,) = device_blockers(Recipe(), [half, full])
    assert "a micro batch of 256" in problem
    assert "--micro-batch 128" in problem


def test_what_could_not_be_measured_is_not_the_bottleneck():
    full = replace(L4, steps={"no": 0.0, "bf16": 0.0})
    assert "the GPUs" not in sentence(devices=[full])
    nothing = sentence(packed=None, disk=None, decoding=None, devices=[full])
    assert "not known" in nothing


def test_advice_that_was_followed_or_cannot_help_is_not_given():
    slow = replace(LOADER, all_workers=800.0, num_workers=44)
    assert "jpegtran" in sentence(decoding=slow)
    assert "--resize" in sentence(decoding=slow)
    packed = replace(IMAGENET, is_resized=True, has_markers=True)
    small = replace(IMAGENET, num_bytes=IMAGENET.num_samples * 2_700)
    for others in (packed, small):
        said = sentence(decoding=slow, packed=others)
        assert "jpegtran" not in said
        assert "--resize" not in said
        assert "more cores" in said
        assert "--resize" not in sentence(disk=replace(GP3, sequential=0.1), packed=others)


def test_a_cpu_that_trains_and_loads_is_reported_as_slower_than_either():
    cpu = DeviceRates("CPU", None, None, {"no": 30.0}, 64, 32)
    assert "share the cores" in sentence(devices=[cpu])
    assert "share the cores" not in sentence()
