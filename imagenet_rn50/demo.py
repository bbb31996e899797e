"""The demo: the commands that one would type, on the digits, one after the other.

It calls the same entry scripts as a run on ImageNet does; nothing in it trains or packs by itself.
"""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from imagenet_rn50.classes import Classes
from imagenet_rn50.console import say
from imagenet_rn50.digits import write_ilsvrc
from imagenet_rn50.files import read_json, write_json

_ROOT = Path(__file__).parents[1]  # where the entry scripts stand
_NUM_PREDICTED = 5

# Nothing of the demo needs the network, and nothing it uses shall ask for it.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_OFFLINE": "1"}


def run_demo(run: Path, data: Path) -> None:
    """Packs, trains, exports, evaluates and predicts, then says where everything is.

    What an earlier call finished is found finished, and kept.

    Args:
        run: Run folder; `run`/summary.json and `run`/exported are written.
        data: Folder for the pictures and their shards.

    Raises:
        SystemExit: With the exit code of the command that failed.
    """
    began = time.perf_counter()
    source, shards, exported = write_ilsvrc(data / "source"), data / "shards", run / "exported"
    say(f"1,797 scans of handwritten digits stand in {source}, laid out as ImageNet is.")

    _call(
        "Pack them into tar shards",
        f"shard_imagenet.py pack --source {shlex.quote(str(source))} "
        f"--out {shlex.quote(str(shards))} "
        "--dataset digits --train-shards 8 --validation-shards 4",
    )
    config = _ROOT / "accelerate_configs" / "cpu.yaml"
    _call(
        "Train a small ResNet",
        f"-m accelerate.commands.launch --config_file {shlex.quote(str(config))} --quiet "
        f"--num_cpu_threads_per_process {os.cpu_count()} train_accelerate.py --recipe digits "
        f"--shards {shlex.quote(str(shards))} --run {shlex.quote(str(run))}",
    )
    model = shlex.quote(str(exported))
    _call(
        "Export the best checkpoint for transformers",
        f"-m imagenet_rn50 export --run {shlex.quote(str(run))} --out {model}",
    )
    evaluation = run / "evaluation.json"
    _call(
        "Evaluate what was exported",
        f"-m imagenet_rn50 evaluate --model {model} --shards {shlex.quote(str(shards))} "
        f"--out {shlex.quote(str(evaluation))}",
    )
    pictures, names = _held_out(source, shards)
    _call(
        "Predict held-out pictures with transformers alone",
        f"examples/predict.py --model {model} {shlex.join(pictures)}",
    )
    say(f"The truth: {'; '.join(names)}.")

    seconds = round(time.perf_counter() - began, 1)
    summary = read_json(evaluation) | {"seconds": seconds}
    write_json(run / "summary.json", summary)
    say(_summary(run, exported, summary))


def _call(purpose: str, command: str) -> None:
    """Runs a Python command as a person would, from the project's folder on.

    Raises:
        SystemExit: When it fails.
    """
    say(f"\n== {purpose}\n$ python {command}")
    words = shlex.split(command)
    if words[0] != "-m":
        words[0] = str(_ROOT / words[0])
    words = [str(_ROOT / word) if word == "train_accelerate.py" else word for word in words]
    search = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | _OFFLINE | {"PYTHONPATH": search}
    code = subprocess.run([sys.executable, *words], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def _held_out(source: Path, shards: Path) -> tuple[list[str], list[str]]:
    """Returns the first held-out pictures and the names of what they show."""
    classes = Classes.load(shards)
    with (source / "LOC_val_solution.csv").open(encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(_NUM_PREDICTED), strict=False)]
    folder = source / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    pictures = [str(folder / f"{row['ImageId']}.JPEG") for row in rows]
    wnids = [row["PredictionString"].split()[0] for row in rows]
    return pictures, [classes.labels[classes.index_of[wnid]] for wnid in wnids]


def _summary(run: Path, exported: Path, summary: dict[str, float]) -> str:
    """Returns what a person wants to know at the end."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f"""
Done in {summary["seconds"]:.0f} s: top-1 {summary["top1"]:.2%}, top-5 {summary["top5"]:.2%} \
on {summary["num_images"]} held-out pictures.

  run folder   {run}
  log          {run / "logs.md"}
  plots        {run / "plots"}
  model        {exported}

Next:
  make app                                                      # show it a picture
  {python} train_accelerate.py --help                    # what can be changed
  {python} shard_imagenet.py pack --source DIR --out DIR  # ImageNet, as Kaggle lays it out
"""
