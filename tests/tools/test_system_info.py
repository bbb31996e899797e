import os
from pathlib import Path

import pytest

from imagenet_rn50.tools.system_info import (
    _driver_version,
    available_memory,
    read_machine,
    volume_of,
)


@pytest.mark.parametrize(
    ("model_at", "model", "said"),
    [
        ("device/model", "Amazon Elastic Block Store", "xfs /dev/nvme1n1 "),
        ("../device/model", "Amazon EC2 NVMe Instance Storage", "xfs /dev/nvme1n1 "),
    ],
)
def test_an_ebs_volume_is_told_from_the_instances_own_nvme(tmp_path, model_at, model, said):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "22 1 0:5 / /proc rw - proc proc rw\n"
        f"36 25 {number} / /mnt rw,noatime shared:1 - xfs /dev/nvme1n1 rw\n"
    )
    disk = tmp_path / "sys/dev/block" / number
    disk.mkdir(parents=True)
    path = disk / model_at
    path.parent.mkdir(parents=True)
    path.write_text(f"{model}   \n")
    assert volume_of(tmp_path, system=tmp_path) == f"{said}({model})"


def test_the_driver_is_read_from_what_it_says_of_itself(tmp_path):
    path = tmp_path / "version"
    path.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    assert _driver_version(path) == "580.95.05"
    assert _driver_version(tmp_path / "none") is None


def test_the_memory_that_is_available_is_less_than_all_of_it(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  8 kB\nMemFree:  1 kB\nMemAvailable:  6 kB\n")
    assert available_memory(tmp_path / "meminfo") == 6 * 1024
    assert available_memory(tmp_path / "none") == read_machine().memory_bytes
    assert 0 < available_memory() <= read_machine().memory_bytes


@pytest.mark.parametrize(
    ("line", "folder", "names", "cache"),
    [
        ("0::/jobs/ours", "", ("memory.max", "memory.current"), "inactive_file"),
        (
            "9:cpu,memory:/jobs/ours",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
        ),
    ],
)
def test_a_container_has_what_its_limit_leaves(tmp_path, line, folder, names, cache):
    (tmp_path / "meminfo").write_text("MemAvailable:  1000 kB\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:pids:/jobs\n{line}\n")
    jobs = tmp_path / "sys/fs/cgroup" / folder / "jobs"
    (jobs / "ours").mkdir(parents=True)
    (jobs / "ours" / names[0]).write_text("max\n")
    (jobs / "ours" / names[1]).write_text("7000\n")

    def available():
        return available_memory(tmp_path / "meminfo", system=tmp_path)

    assert available() == 1000 * 1024
    (jobs / names[0]).write_text("10000\n")
    (jobs / names[1]).write_text("8000\n")
    (jobs / "memory.stat").write_text(f"anon 7000\n{cache} 500\nactive_file 400\n")
    assert available() == 10_000 - 8000 + 500
    (jobs / names[1]).write_text("12000\n")
    assert available() == 0


def test_this_machine_is_described_without_its_name_and_paths():
    machine = read_machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes > 2**30
    assert os.uname().nodename not in repr(machine)
    assert str(Path.home()) not in repr(machine)
