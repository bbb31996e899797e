"""Run the demo: all commands of the workflow, on small images of digits.

It only calls the entry scripts, as a run on ImageNet does.
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
from imagenet_rn50.shards.manifest import FILE_NAME as MANIFEST_FILE
from imagenet_rn50.tools.digits import write_ilsvrc
from imagenet_rn50.utils.files import read_json, write_json
from imagenet_rn50.utils.formatting import quoted
from imagenet_rn50.utils.logging import logger

_ROOT = Path(__file__).parents[2]  # the folder of the entry scripts
_CONFIG = "accelerate_configs/cpu.yaml"
_PACKING = "--dataset digits --train-shards 8 --validation-shards 4 --restart-blocks none"
_NUM_PREDICTED = 5

# The demo needs no network; keep libraries from using it.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Waiting threads leave their core to the loader's workers.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def run_demo(run: Path, data: Path) -> None:
    """Pack, train, export, evaluate and predict, then log where the results are.

    Steps that an earlier call finished are kept. If it finished all of them, and neither code nor
    results have changed since, nothing is done.

    Args:
        run: Run directory; `summary.json` and `exported/` are written into it.
        data: Folder for the images and their shards.

    Raises:
        SystemExit: With the exit code of a command that fails.
    """
    began = time.perf_counter()
    run, data = (Path(os.path.relpath(path, _ROOT)) for path in (run, data))
    os.chdir(_ROOT)  # so that users can run the logged commands
    source, shards = write_ilsvrc(data / "source"), data / "shards"
    exported, evaluation, summary_file = run / "exported", run / "evaluation", run / "summary.json"
    logger.info(f"1,797 scans of handwritten digits are in {source}, in the layout of ImageNet.")

    logger.info("\n== Pack them into tar shards")
    _call(f"python shard_imagenet.py pack --source {{}} --out {{}} {_PACKING}", source, shards)
    made = shards / MANIFEST_FILE, run / "logs.md", exported / "model.safetensors"
    if _is_current(summary_file, *made, evaluation / "report.html"):
        logger.info("\nNothing to do: the results are up to date. `make clean` removes them.")
        logger.info(_summary(run, exported, evaluation, read_json(summary_file)))
        return
    logger.info("\n== Train a small ResNet")
    _call(
        f"accelerate launch --quiet --config_file {_CONFIG} "
        f"--num_cpu_threads_per_process {os.cpu_count()} "
        "train_accelerate.py --recipe digits --shards {} --run {}",
        *(shards, run),
    )
    logger.info("\n== Export the best checkpoint for transformers")
    _call("python -m imagenet_rn50 export --run {} --out {}", run, exported)
    logger.info("\n== Evaluate the exported model")
    _call(
        "python -m imagenet_rn50 evaluate --model {} --shards {} --out {}",
        *(exported, shards, evaluation),
    )
    logger.info("\n== Export again, with the evaluation in the model card and example images")
    metrics = evaluation / "metrics.json"
    _call(
        "python -m imagenet_rn50 export --run {} --out {} --metrics {} --shards {}",
        *(run, exported, metrics, shards),
    )
    logger.info("\n== Predict held-out images with transformers only")
    images, names = _held_out(source, shards)
    _call("python examples/predict.py --model {}" + " {}" * len(images), exported, *images)
    logger.info(f"True classes: {' | '.join(names)}")

    seconds = round(time.perf_counter() - began, 1)
    first, *_ = read_json(metrics)["results"]
    summary = {key: first[key] for key in ("top1", "top5", "loss", "num_images")}
    summary["seconds"] = seconds
    write_json(summary_file, summary)
    logger.info(_summary(run, exported, evaluation, summary))


def _is_current(summary: Path, *made: Path) -> bool:
    """Return whether a summary exists and is newer than the results and the code."""
    code = (*_ROOT.glob("imagenet_rn50/**/*.py"), *_ROOT.glob("imagenet_rn50/recipes/*.yaml"))
    try:
        return summary.stat().st_mtime >= max(path.stat().st_mtime for path in (*code, *made))
    except FileNotFoundError:
        return False


def _call(form: str, *paths: str | Path) -> None:
    """Log a command and run it in this Python environment.

    Args:
        form: The command, with {} for each path.
        paths: The paths, which are quoted for the shell.

    Raises:
        SystemExit: When it fails, with its exit code.
    """
    command = form.format(*map(quoted, paths))
    logger.info(f"$ {command}")
    program, *arguments = shlex.split(command)
    path = Path(sys.executable).with_name(program)
    code = subprocess.run([path, *arguments], env=os.environ | _ENVIRONMENT, check=False).returncode
    if code:
        raise SystemExit(code)


def _held_out(source: Path, shards: Path) -> tuple[list[str], list[str]]:
    """Return the first held-out images and the names of their classes."""
    classes = Classes.load(shards)
    with (source / "LOC_val_solution.csv").open(encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(_NUM_PREDICTED), strict=False)]
    folder = source / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    images = [str(folder / f"{row['ImageId']}.JPEG") for row in rows]
    wnids = [row["PredictionString"].split()[0] for row in rows]
    return images, [classes.labels[classes.index_of[wnid]] for wnid in wnids]


def _summary(run: Path, exported: Path, evaluation: Path, summary: dict[str, float]) -> str:
    return f"""
Done in {summary["seconds"]:.0f} s: top-1 {summary["top1"]:.2%}, top-5 {summary["top5"]:.2%} \
on {summary["num_images"]} held-out images.

  run          {run}
  log          {run / "logs.md"}
  plots        {run / "plots"}
  model        {exported}
  model card   {exported / "README.md"}
  evaluation   {evaluation / "report.html"}

Next:
  make app                                        classify an image in the browser
  .venv/bin/python train_accelerate.py --help     list the options of training
  .venv/bin/python shard_imagenet.py --help       list the options of packing ImageNet
"""
