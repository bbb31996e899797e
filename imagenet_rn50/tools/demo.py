"""The demo: the commands that one would type, on the digits, one after the other.

It calls the same entry scripts as a run on ImageNet does; nothing in it trains or packs by itself.
"""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from imagenet_rn50.classes import Classes
from imagenet_rn50.tools.digits import write_ilsvrc
from imagenet_rn50.utils.files import read_json, write_json
from imagenet_rn50.utils.logging import logger

_ROOT = Path(__file__).parents[2]  # where the entry scripts stand
_CONFIG = "accelerate_configs/cpu.yaml"
_PACKING = "--dataset digits --train-shards 8 --validation-shards 4 --restart-blocks none"
_NUM_PREDICTED = 5

# Nothing of the demo needs the network, and nothing it uses shall ask for it.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Threads that wait give their core to the loader's workers, instead of spinning on it.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def run_demo(run: Path, data: Path) -> None:
    """Packs, trains, exports, evaluates and predicts, then says where everything is.

    What an earlier call finished is found finished, and kept; where it finished all, and neither
    the code nor a result has changed since, there is nothing to do.

    Args:
        run: Run folder; `run`/summary.json and `run`/exported are written.
        data: Folder for the images and their shards.

    Raises:
        SystemExit: With the exit code of the command that failed.
    """
    began = time.perf_counter()
    run, data = (Path(os.path.relpath(path, _ROOT)) for path in (run, data))
    os.chdir(_ROOT)  # so that every command below can be typed as it is shown
    source, shards = write_ilsvrc(data / "source"), data / "shards"
    exported, evaluation, summary_file = run / "exported", run / "evaluation", run / "summary.json"
    logger.info(f"1,797 scans of handwritten digits stand in {source}, laid out as ImageNet is.")

    logger.info("\n== Pack them into tar shards")
    _call(f"python shard_imagenet.py pack --source {{}} --out {{}} {_PACKING}", source, shards)
    made = shards / "manifest.json", run / "logs.md", exported / "model.safetensors"
    if _is_current(summary_file, *made, evaluation / "report.html"):
        logger.info("\nThe rest was made before. Nothing to do; `make clean` lets it begin anew.")
        logger.info(_summary(run, exported, evaluation, read_json(summary_file)))
        return
    logger.info("\n== Train a small ResNet")
    _call(
        f"accelerate launch --config_file {_CONFIG} --quiet "
        f"--num_cpu_threads_per_process {os.cpu_count()} "
        "train_accelerate.py --recipe digits --shards {} --run {}",
        *(shards, run),
    )
    logger.info("\n== Export the best checkpoint for transformers")
    _call("python -m imagenet_rn50 export --run {} --out {}", run, exported)
    logger.info("\n== Evaluate what was exported")
    _call(
        "python -m imagenet_rn50 evaluate --model {} --shards {} --out {}",
        *(exported, shards, evaluation),
    )
    logger.info("\n== Predict held-out images with transformers alone")
    images, names = _held_out(source, shards)
    _call("python examples/predict.py --model {}" + " {}" * len(images), exported, *images)
    logger.info(f"The truth: {' | '.join(names)}")
    _bring_examples(exported / "examples", images, names)

    seconds = round(time.perf_counter() - began, 1)
    first, *_ = read_json(evaluation / "metrics.json")["results"]
    summary = {key: first[key] for key in ("top1", "top5", "loss", "num_images")}
    summary["seconds"] = seconds
    write_json(summary_file, summary)
    logger.info(_summary(run, exported, evaluation, summary))


def _is_current(summary: Path, *made: Path) -> bool:
    """Says whether a summary is there and younger than what it tells of, and than the code."""
    code = (*_ROOT.glob("imagenet_rn50/**/*.py"), *_ROOT.glob("imagenet_rn50/recipes/*.yaml"))
    try:
        return summary.stat().st_mtime >= max(path.stat().st_mtime for path in (*code, *made))
    except FileNotFoundError:
        return False


def _call(form: str, *paths: str | Path) -> None:
    """Shows a command and runs it, with the Python that runs this.

    Args:
        form: The command, {} where a path goes.
        paths: Those, quoted where a shell would want it.

    Raises:
        SystemExit: When it fails, with its exit code.
    """
    command = form.format(*(shlex.quote(str(path)) for path in paths))
    logger.info(f"$ {command}")
    program, *arguments = shlex.split(command)
    path = Path(sys.executable).with_name(program)
    code = subprocess.run([path, *arguments], env=os.environ | _ENVIRONMENT, check=False).returncode
    if code:
        raise SystemExit(code)


def _held_out(source: Path, shards: Path) -> tuple[list[str], list[str]]:
    """Returns the first held-out images and the names of what they show."""
    classes = Classes.load(shards)
    with (source / "LOC_val_solution.csv").open(encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(_NUM_PREDICTED), strict=False)]
    folder = source / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    images = [str(folder / f"{row['ImageId']}.JPEG") for row in rows]
    wnids = [row["PredictionString"].split()[0] for row in rows]
    return images, [classes.labels[classes.index_of[wnid]] for wnid in wnids]


def _bring_examples(folder: Path, images: list[str], names: list[str]) -> None:
    """Puts images beside the model, which the Space offers to try."""
    folder.mkdir(exist_ok=True)
    for number, (image, name) in enumerate(zip(images, names, strict=True), start=1):
        shutil.copy(image, folder / f"{number} {name.partition(',')[0]}.jpg")


def _summary(run: Path, exported: Path, evaluation: Path, summary: dict[str, float]) -> str:
    """Returns what a person wants to know at the end."""
    return f"""
Done in {summary["seconds"]:.0f} s: top-1 {summary["top1"]:.2%}, top-5 {summary["top5"]:.2%} \
on {summary["num_images"]} held-out images.

  run folder   {run}
  log          {run / "logs.md"}
  plots        {run / "plots"}
  model        {exported}
  evaluation   {evaluation / "report.html"}

Next:
  make app                                        show the model a image, in the browser
  .venv/bin/python train_accelerate.py --help     what can be changed
  .venv/bin/python shard_imagenet.py --help       pack ImageNet, as Kaggle lays it out
"""
