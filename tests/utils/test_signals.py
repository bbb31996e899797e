import os
import re
import sys

import psutil
import pytest

from imagenet_rn50.utils import signals as processes
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.signals import (
    Launcher,
    check_num_gpus,
    check_world_size,
    launch_command,
)


def test_the_command_to_go_on_is_the_launchers_as_it_was_typed(monkeypatch):
    words = ("/venv/bin/python3", "/venv/bin/accelerate", "launch", "train.py", "--run", "a b")
    typed = Launcher(words, (("ACCELERATE_USE_CPU", "1"),))
    monkeypatch.setattr(processes, "launcher", lambda: typed)
    assert launch_command() == "ACCELERATE_USE_CPU=1 accelerate launch train.py --run 'a b'"


def test_an_option_that_has_done_its_work_is_left_out_of_it(monkeypatch):
    monkeypatch.setattr(processes, "launcher", lambda: Launcher((), ()))
    for given in (["--stop-at-step", "3"], ["--stop-at-step=3"], ["--stop_at_step", "3"]):
        monkeypatch.setattr(sys, "argv", ["train.py", "--run", "x", *given, "--workers", "1"])
        command = launch_command(without="--stop-at-step")
        assert command == "python train.py --run x --workers 1"


@pytest.mark.parametrize("form", ["--shards {}", "--shards={}"])
def test_secrets_in_addresses_are_left_out_of_it_and_that_is_said(monkeypatch, form):
    monkeypatch.setattr(processes, "launcher", lambda: Launcher((), ()))
    address = "https://user:PASSWORD@host/x?X-Amz-Signature=SECRET#TOKEN"
    given = [*form.format(address).split(), "--sync", "s3://runs/one", "--run", "a b"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    expected = f"python train.py {form} --sync s3://runs/one --run 'a b'  # address shortened"
    assert launch_command() == expected.format("https://host/x")
    monkeypatch.setattr(sys, "argv", ["train.py", "--sync", "s3://runs/one"])
    assert launch_command() == "python train.py --sync s3://runs/one"


def test_a_parent_that_is_no_launcher_is_not_taken_for_one():
    processes.launcher.cache_clear()
    assert os.getppid() > 0
    assert processes.launcher().words == ()


def test_the_command_to_go_on_has_the_variables_that_matter_and_no_secret(monkeypatch):
    given = {
        "ACCELERATE_USE_CPU": "1",
        "ACCELERATE_MIXED_PRECISION": "no",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NCCL_SOCKET_IFNAME": "^lo docker",
        "OMP_NUM_THREADS": "1",
        "NCCL_VERSION": "2.1",
        "ACCELERATE_TOKEN": "SECRET",
        "HF_TOKEN": "SECRET",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "WANDB_API_KEY": "SECRET",
        "PATH": "/bin",
    }
    monkeypatch.setattr(psutil.Process, "environ", lambda process: given)
    monkeypatch.setattr(sys, "argv", ["train.py", "--run", "a b"])
    processes.launcher.cache_clear()
    command = launch_command()
    processes.launcher.cache_clear()
    assert command == (
        "ACCELERATE_USE_CPU=1 ACCELERATE_MIXED_PRECISION=no CUDA_VISIBLE_DEVICES=0,1 "
        "NCCL_SOCKET_IFNAME='^lo docker' OMP_NUM_THREADS=1 python train.py --run 'a b'"
    )


@pytest.mark.parametrize(
    ("variables", "world_size"),
    [
        ({"WORLD_SIZE": "2"}, 1),
        ({"WORLD_SIZE": "1"}, 2),
        ({"WORLD_SIZE": "two"}, 1),
        ({"SLURM_NTASKS": "2"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "WORLD_SIZE": "1"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 1),
        ({"PMI_SIZE": "4"}, 1),
        ({"MV2_COMM_WORLD_SIZE": "4"}, 1),
        # srun or mpirun started one torchrun on each of two machines, which do not know each other.
        ({"SLURM_STEP_NUM_TASKS": "2", "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "4"}, 4),
    ],
)
def test_processes_that_did_not_join_are_refused(no_launcher, variables, world_size):
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    with pytest.raises(InputError, match="|".join(variables)):
        check_world_size(world_size, on_gpu=False)


@pytest.mark.parametrize(
    ("variables", "world_size"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "2"}, 2),
        ({"SLURM_NTASKS": "1"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),  # Accelerate joins by MPI's variables on the CPU
        ({"SLURM_NTASKS": "8", "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "8"}, 8),  # in a batch script
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, 1),  # srun --ntasks=1 in an allocation
        ({"SLURM_STEP_NUM_TASKS": "2", "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "16"}, 16),
    ],
)
def test_processes_that_joined_are_not_refused(no_launcher, variables, world_size):
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    check_world_size(world_size, on_gpu=False)


@pytest.mark.parametrize(
    ("variables", "num_gpus"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, 1),
        ({"LOCAL_WORLD_SIZE": "2"}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"LOCAL_WORLD_SIZE": "3", "ROCR_VISIBLE_DEVICES": "0,1"}, 2),
    ],
)
def test_more_processes_than_gpus_are_refused_and_both_numbers_are_told(
    no_launcher, variables, num_gpus
):
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    with pytest.raises(InputError) as refused:
        check_num_gpus(num_gpus)
    assert {variables["LOCAL_WORLD_SIZE"], str(num_gpus)} <= set(
        re.findall(r"\d+", str(refused.value))
    )
    assert "--num_processes" in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "num_gpus"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "16"}, 8),
        # A script gives each process another GPU.
        ({"LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "3"}, 1),
    ],
)
def test_processes_that_have_a_gpu_each_are_not_refused(no_launcher, variables, num_gpus):
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    check_num_gpus(num_gpus)


@pytest.fixture
def no_launcher(monkeypatch):
    """An environment that says nothing of other processes."""
    for name in list(os.environ):
        if re.match(r"SLURM_|OMPI_|PMI_|MV2_|(LOCAL_|GROUP_)?WORLD_SIZE|\w+_VISIBLE_DEVICES", name):
            monkeypatch.delenv(name)
    return monkeypatch
