"""The files in accelerate_configs/: accelerate parses each, and those for a CPU train."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file

import train_accelerate
from imagenet_rn50.runs.checkpoint import newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from tests.support import free_ports, write_tiny

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
RANKS = {
    "1gpu_bf16": (1, 1, "bf16"),
    "1gpu_fp16": (1, 1, "fp16"),
    "2xt4_fp16": (1, 2, "fp16"),
    "2x8gpu_c10d": (2, 16, "bf16"),
    "2x8gpu_static": (2, 16, "bf16"),
    "8gpu": (1, 8, "bf16"),
    "cpu": (1, 1, "no"),
    "cpu_2proc": (1, 2, "no"),
    "g6_12xlarge": (1, 4, "bf16"),
}
PLACEHOLDERS = {"MASTER_IP": "10.0.0.1", "SHARDS": "shards", "RUN": "run"}
NUM_TRAIN = 21


def commands_of(config: Path) -> list[list[str]]:
    """Return the commands in the header of a file, split into arguments, placeholders filled in."""
    head = config.read_text(encoding="utf-8").partition("\ncompute_environment")[0]
    shown = re.findall(r"^#   ((?:\S+=\S+ )*accelerate launch .*(?:\n#       .*)*)", head, re.M)
    texts = [text.replace("\\\n#", " ") for text in shown]
    return [[PLACEHOLDERS.get(word, word) for word in shlex.split(text)] for text in texts]


def launch_arguments(words: list[str]):
    """Return the arguments of `accelerate launch`, merged with the configuration file."""
    arguments = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
    return _validate_launch_command(arguments)[0]


def test_every_configuration_has_an_expected_world_size():
    assert {path.stem for path in CONFIGS} == RANKS.keys()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_parses_every_configuration_as_documented(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert isinstance(load_config_from_file(str(config)), ClusterConfig)
    commands = commands_of(config)
    assert commands, "the header must show the launch command"
    for words in commands:
        assert f"accelerate_configs/{config.name}" in words
        launched = launch_arguments(words)
        found = launched.num_machines, launched.num_processes, launched.mixed_precision
        assert found == RANKS[config.stem]
        assert launched.multi_gpu == (found[1] > 1)
        assert launched.dynamo_backend == "no"
        if launched.num_machines > 1:
            assert launched.main_process_ip == "10.0.0.1"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_recipe_in_each_command_fits_the_number_of_ranks(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands_of(config):
        script = words[words.index("train_accelerate.py") + 1 :]
        arguments = train_accelerate.parse(script)
        assert arguments.hyperparameters.accumulation(RANKS[config.stem][1]) >= 1


def test_commands_of_two_machines_differ_only_in_machine_rank():
    first, second = commands_of(ROOT / "accelerate_configs" / "2x8gpu_static.yaml")
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert differing == [("0", "1")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)  # two launchers and two ranks on a possibly busy machine
@pytest.mark.parametrize("name", ["2x8gpu_static", "2x8gpu_c10d"])
def test_two_machines_split_the_samples_and_match_single_process_weights(
    tiny, tmp_path, name, monkeypatch
):
    (tmp_path / "notes").mkdir()
    run, [port] = tmp_path / "run", free_ports()
    nodes = [start_node(name, rank, port, tiny, tmp_path / "notes", run) for rank in (0, 1)]
    try:
        errors = [node.communicate()[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(errors)
    assert read_metrics(run, "start")[0]["world_size"] == 2

    notes = [json.loads((tmp_path / "notes" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(notes), "both ranks must get samples"
    stream = [index for step in zip(*notes, strict=True) for batch in step for index in batch]
    assert sorted(stream[:NUM_TRAIN]) == list(range(NUM_TRAIN))
    assert set(Counter(stream[: 2 * NUM_TRAIN]).values()) == {2}

    alone = tmp_path / "alone"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(sys, "argv", ["train_accelerate.py", *script_arguments(tiny, alone)])
    train_accelerate.main()
    ours, theirs = weights(run), weights(alone)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if "num_batches_tracked" not in key:  # counts the micro-batches of one rank; unused
            torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-5)


def start_node(name, rank, port, tiny, notes, run):
    """Start the launcher of one of two simulated machines, with one CPU rank."""
    options = f"--num_processes 2 --main_process_ip 127.0.0.1 --main_process_port {port}"
    options += f" --machine_rank {rank} --mixed_precision no"
    config = ROOT / "accelerate_configs" / f"{name}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [*options.split(), "-m", "tests.training.witness", str(notes)]
    return subprocess.Popen(
        command + script_arguments(tiny, run),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def script_arguments(tiny, run):
    words = ["--recipe", str(tiny / "tiny.yaml"), "--shards", str(tiny / "shards")]
    return [*words, "--run", str(run), "--workers", "0"]


def environment():
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return os.environ | threads | {"ACCELERATE_USE_CPU": "1"}


def weights(run):
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return load_file(checkpoint.weights)
