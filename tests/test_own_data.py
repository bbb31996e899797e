"""A part of the digits, validated on a hold-out: selected, trained, evaluated, exported."""

import json
import os
import subprocess
import sys

import pytest

from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.tools.digits import write_ilsvrc
from tests.commands import ROOT


def run(*words, cwd):
    """Run a command of this project; it must succeed."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1", "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_classes_of_twenty_images_with_a_holdout_go_the_whole_way(tmp_path):
    source = read_source(write_ilsvrc(tmp_path / "source"))
    pack(source, tmp_path / "shards", PackOptions(dataset="digits", train_shards=4))
    options = "--num-classes 5 --train-only --holdout 0.2 --images-per-class 20 --seed 1".split()
    shard = ROOT / "shard_imagenet.py"
    run(shard, "subset", "--shards", "shards", "--out", "part", *options, cwd=tmp_path)
    train = "--recipe digits --shards part --run run --epochs 20 --global-batch 20"
    train += " --micro-batch 20 --optimizer.lr 0.05"
    run(ROOT / "train_accelerate.py", *train.split(), cwd=tmp_path)
    ours = ("-m", "imagenet_rn50")
    evaluate = "evaluate --model run --shards part --out run/evaluation"
    run(*ours, *evaluate.split(), cwd=tmp_path)
    run(*ours, *"export --run run --out model --shards part".split(), cwd=tmp_path)
    part = Manifest.load(tmp_path / "part")
    assert part.split("train").num_samples == 100
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["results"][0]["num_images"] == part.split("validation").num_samples
    assert metrics["results"][0]["top1"] > 0.5  # a guess is right in 0.2
    assert unsourced_numbers(tmp_path / "model") == []
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert Manifest.fingerprint_of(tmp_path / "shards") in card
    assert "is a subset of digits<!--shards.json options.parent.dataset-->" in card
    assert "held out of the training images: 0.2<!--" in card
    assert "--num-classes 5 --images-per-class 20 --holdout 0.2 --train-only --seed 1" in card
