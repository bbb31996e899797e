"""Options and help of `python -m imagenet_rn50`, in the order of the workflow."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from imagenet_rn50.utils.errors import InputError


def _require_local(shards: Path) -> None:
    """Refuses an address: a Path has made one slash of its two.

    Raises:
        InputError: When it is one.
    """
    if re.match(r"[a-z][a-z0-9+]+:/", str(shards)):
        raise InputError(
            f"{shards} is an address",
            expected="a folder on this machine: this looks at the volume that training reads from",
            fix="name a local copy; train_accelerate.py takes addresses, with --cache",
        )


def demo(folder: Path = Path("runs/demo"), data: Path = Path("data/digits")) -> None:
    """Take real pictures down the whole path: pack, train, export, evaluate, predict.

    Args:
        folder: Run folder of the demo; the exported model goes inside.
        data: Where the digits and their shards go.
    """
    from imagenet_rn50.tools.demo import run_demo

    run_demo(folder, data)


def doctor(
    recipe: str = "rn50-16ep",
    shards: Path | None = None,
    workers: int = min(8, os.cpu_count() or 1),
    seconds: float = 5.0,
    json: bool = False,
) -> None:
    """Measure this machine, name what holds training up; exit code 1 when a run would not start.

    Args:
        recipe: Name of the recipe that would run, or a YAML file.
        shards: Folder on this machine that shard_imagenet.py wrote; without it, volume and loader
            are left out.
        workers: Loader processes of each rank.
        seconds: How long each single thing is measured.
        json: Print JSON, which `estimate --measured` reads, instead of a table.
    """
    from json import dumps

    from imagenet_rn50.recipe import load_recipe
    from imagenet_rn50.tools.doctor import diagnose, format_diagnosis

    if shards is not None:
        _require_local(shards)
    if not 0 < seconds < float("inf") or workers < 0:
        raise InputError(
            f"--seconds {seconds:g} --workers {workers} makes no sense",
            expected="--seconds over 0, --workers of 0 or more",
        )
    found = diagnose(load_recipe(recipe), recipe, shards, workers, seconds)
    print(dumps(found.to_json(), indent=2) if json else format_diagnosis(found))
    if found.blockers:
        raise SystemExit(1)


def estimate(
    recipe: str,
    instance: str | None = None,
    nodes: int = 1,
    precision: Literal["bf16", "fp16", "no"] = "bf16",
    target: float | None = None,
    measured: Path | None = None,
    images_per_second: float | None = None,
    disk: float | None = None,
    price: float | None = None,
    prices: Path | None = None,
    micro_batch: int | None = None,
    shards: Path | None = None,
    images: tuple[int, int] | None = None,
) -> None:
    """Compute hours and price of a run, with every assumption, before money is spent.

    Args:
        recipe: Name of a recipe, or a YAML file.
        instance: Kind of EC2 instance, from the table of prices; g6.12xlarge unless --measured.
        nodes: How many of them.
        precision: Mixed precision, or no.
        target: Top-1 in (0, 1]: also list the recipes whose published figure reaches it.
        measured: What `doctor --json` printed on the machine, instead of speeds that others found.
        images_per_second: Speed of all GPUs of a machine at 224 px, where you know it better.
        disk: MiB/s of the volume of the shards.
        price: USD an hour of a machine.
        prices: A table of your own, like imagenet_rn50/tools/prices.yaml.
        micro_batch: Instead of the recipe's.
        shards: Folder on this machine that shard_imagenet.py wrote, to count its images; without
            it those that were --measured, or ImageNet-1k's for a recipe with a published figure.
        images: Instead of shards that are not there yet: training and validation images.
    """
    from imagenet_rn50.recipe import load_recipe, parse_recipe
    from imagenet_rn50.tools.estimate import (
        PRICES,
        Options,
        format_estimate,
        load_prices,
        make_estimate,
    )

    if target is not None and not 0 < target <= 1:
        raise InputError(f"--target must be a top-1 in (0, 1], such as 0.76, got {target:g}")
    loaded = load_recipe(recipe)
    if micro_batch is not None:
        changed = loaded.model_dump(mode="json") | {"micro_batch": micro_batch}
        loaded = parse_recipe(changed, source=f"{recipe} with --micro-batch {micro_batch}")
    if shards is not None:
        _require_local(shards)
    options = Options(
        instance, precision, measured, images_per_second, disk, price, nodes, shards, images
    )
    found = make_estimate(recipe, loaded, load_prices(prices or PRICES), options)
    print(format_estimate(found, target))


def preview(
    shards: Path,
    recipe: str,
    out: Path = Path("preview.png"),
    split: Literal["train", "validation"] = "train",
    start: int = 0,
    rows: int = 4,
    columns: int = 8,
) -> None:
    """Write a picture of what the model will see, after cropping and augmentation.

    Args:
        shards: Folder on this machine that shard_imagenet.py wrote.
        recipe: Name of a recipe, or a YAML file.
        out: PNG file to write.
        split: The training stream, or what validation sees.
        start: Position of the first picture: in training, the images seen before it.
        rows: Rows of the grid.
        columns: Pictures in a row.
    """
    _require_local(shards)
    from imagenet_rn50.recipe import load_recipe
    from imagenet_rn50.tools.preview import preview as write_preview

    write_preview(
        shards, load_recipe(recipe), out, split=split, start=start, rows=rows, columns=columns
    )
    print(f"wrote {out}")


def schedule(recipe: str, shards: Path | None = None, out: Path = Path("schedule.png")) -> None:
    """Draw the learning rate of a recipe, and say what a run of it would leave out.

    Args:
        recipe: Name of a recipe, or a YAML file.
        shards: Folder on this machine that shard_imagenet.py wrote, to count optimizer steps.
        out: PNG file to write.
    """
    from imagenet_rn50.recipe import load_recipe
    from imagenet_rn50.shards.manifest import TRAIN, Manifest
    from imagenet_rn50.training.schedules import draw_schedule, schedule_in_words

    loaded, num_train = load_recipe(recipe), None
    if shards is not None:
        _require_local(shards)
        num_train = Manifest.load(shards).split(TRAIN).num_samples
    draw_schedule(loaded, Path(recipe).stem, out)
    print(schedule_in_words(loaded, num_train))
    print(f"wrote {out}")


def prove_resume(
    recipe: str,
    shards: str,
    steps: int = 10,
    run: Path | None = None,
    launcher: str = sys.executable,
    options: str = "",
) -> None:
    """Kill a training of yours with kill -9, resume it, and compare it with one left in peace.

    Exit code 1 when they differ. In real processes, with whatever this machine trains on.

    Args:
        recipe: Name of a recipe, or a YAML file.
        shards: Folder that shard_imagenet.py wrote, or its address: s3://, https://, hf://.
        steps: Optimizer steps before the kill, and again after it.
        run: New folder to leave both runs in; None removes them.
        launcher: What starts the script: "accelerate launch --config_file ...".
        options: More options of train_accelerate.py: --options="--workers 4 --optimizer.lr 0.1".
    """
    from imagenet_rn50.tools.prove_resume import Proof
    from imagenet_rn50.tools.prove_resume import prove_resume as prove

    words, more = tuple(shlex.split(launcher)), tuple(shlex.split(options))
    if not prove(Proof(recipe, shards, steps, words, more), run):
        raise SystemExit(1)


@dataclass(frozen=True)
class EvaluateArguments:
    """What to count, of which model, over which images."""

    model: str
    """Run folder, exported folder, or Hub id."""
    shards: str | None = None
    """Folder that shard_imagenet.py wrote, or its address: s3://, https://, hf://."""
    split: Literal["validation", "train"] = "validation"
    """Which images of the shards."""
    real: Path | None = None
    """ImageNet-ReaL's real.json, to count the validation images by its labels, too."""
    images: Path | None = None
    """Folder of ImageNet-V2, -A, -R or -Sketch, instead of shards."""
    layout: Literal["imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch"] | None = None
    """How that is laid out; found out by itself."""
    classes: Path | None = None
    """A list of classes (classes.json, LOC_synset_mapping.txt or Keras' imagenet_class_index.json,
    of any name), where folders are named by wnid and neither model nor shards list them."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run: the one with the best validation top-1, or the newest."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Of a run: its averaged weights, its raw ones, or whichever scored better."""
    transform: Literal["both", "training", "processor"] = "both"
    """Training's evaluation transform, the processor shipped with the model, or both."""
    flip: bool = False
    """Also average with the logits of the mirrored picture, and report that apart."""
    batch: int = 128
    """Images in a forward pass."""
    workers: int = min(8, os.cpu_count() or 1)
    """Loader processes of each rank."""
    cache: Path | None = None
    """Folder of this machine to keep remote shards in."""
    out: Path | None = None
    """Folder to write metrics.json, per_class.csv and report.html to."""


def evaluate(asked: Annotated[EvaluateArguments, tyro.conf.arg(name="")]) -> None:
    """Count how often a model is right, over shards or a test set of files, on any number of ranks.

    Args:
        asked: What to count, of which model, over which images.
    """
    from imagenet_rn50.evaluation.datasets import open_images, read_real
    from imagenet_rn50.evaluation.evaluate import evaluate as evaluate_model
    from imagenet_rn50.evaluation.evaluate import joined_ranks
    from imagenet_rn50.evaluation.load_model import load_model
    from imagenet_rn50.evaluation.output import (
        num_classes_counted,
        require_own_folder,
        results_table,
        write_evaluation,
    )
    from imagenet_rn50.utils.logging import logger

    if asked.batch < 1 or asked.workers < 0:
        raise InputError(
            f"--batch {asked.batch} --workers {asked.workers} makes no sense",
            expected="--batch of 1 or more, --workers of 0 or more",
        )
    if asked.out:
        require_own_folder(asked.out)
    with joined_ranks() as state:
        loaded = load_model(asked.model, asked.checkpoint, asked.weights)
        images, known = open_images(
            loaded,
            asked.shards,
            asked.images,
            split=asked.split,
            layout=asked.layout,
            classes=asked.classes,
            cache=asked.cache,
        )
        if images.not_counted and state.is_main_process:
            first, num_files = images.not_counted[0], sum(e.num_files for e in images.not_counted)
            logger.info(f"not counted: {num_files:,} files, such as {first.path}: {first.reason}")
        evaluation = evaluate_model(
            loaded,
            images,
            transform=asked.transform,
            flip=asked.flip,
            batch=asked.batch,
            num_workers=asked.workers,
            real=read_real(asked.real, images, len(loaded.labels)) if asked.real else None,
        )
        if state.is_main_process:
            logger.info(results_table(evaluation.results, num_classes_counted(loaded, images)))
            if asked.out:
                write_evaluation(asked.out, loaded, images, evaluation, known)
                logger.info(f"wrote {asked.out}: metrics.json, per_class.csv, report.html")


def export(
    out: Path,
    run: Path | None = None,
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    checkpoint: Literal["best", "last"] = "best",
    weights: Literal["auto", "ema", "raw"] = "auto",
    format: Literal["transformers", "torchvision", "onnx"] = "transformers",
    dtype: Literal["float32", "float16"] = "float32",
    shards: str | None = None,
    cache: Path | None = None,
    metrics: Path | None = None,
    classes: Path | None = None,
    arch: str | None = None,
    eval_resize: int | None = None,
    eval_size: int | None = None,
) -> None:
    """Write a model as a folder that others load: of a run, or from weights of others.

    Args:
        out: Folder to write.
        run: Run folder of the training.
        from_: Instead of a run: a .safetensors or .pth file of torchvision's, timm's or ours, an
            exported folder, or a Hub id.
        checkpoint: With --run: the checkpoint with the best validation top-1, or the newest.
        weights: Averaged (EMA) weights, raw ones, or of a run whichever scored better. With --from:
            needed where the file holds both.
        format: Who loads it.
        dtype: Type of the weights.
        shards: Pictures to compare original and export on: a folder of shards, or its address.
        cache: Folder of this machine to keep remote shards in.
        metrics: metrics.json of `evaluate`, for the card; by default that of the run.
        classes: With --from: a list of classes (classes.json, LOC_synset_mapping.txt or Keras'
            imagenet_class_index.json, of any name), where the weights do not name theirs.
        arch: With --from: name of their architecture in timm (resnet50, or resnet50.a1_in1k to take
            its preprocessing too), where neither a config.json nor the file declares it.
        eval_resize: With --from: shorter side to resize pictures to, px; by default what its folder
            says, or training's.
        eval_size: With --from: side of the central crop, px; likewise.
    """
    from imagenet_rn50.publishing.export import Wanted, convert
    from imagenet_rn50.publishing.export import export as export_run
    from imagenet_rn50.shards.store import open_shards

    if (run is None) == (from_ is None):
        raise InputError("one thing is exported at a time", expected="either --run or --from")
    sizes = {"eval_resize": eval_resize, "eval_size": eval_size}
    given = {name: size for name, size in sizes.items() if size is not None}
    if run is not None:
        of_others = {"--classes": classes, "--arch": arch, "--eval-resize or --eval-size": given}
        _refuse("--run", "--from", of_others)
    else:
        _refuse("--from", "--run", {"--checkpoint": checkpoint != "best"})
    store = open_shards(shards, cache=cache) if shards else None
    wanted = Wanted(form=format, dtype=dtype, shards=store, metrics=metrics)
    if run is not None:
        export_run(run, out, checkpoint=checkpoint, weights=weights, wanted=wanted)
        return
    kind = None if weights == "auto" else weights
    convert(str(from_), out, classes=classes, sizes=given, kind=kind, arch=arch, wanted=wanted)


def _refuse(source: str, other: str, options: dict[str, Any]) -> None:
    """Raises `InputError` where options of one source were given with another."""
    for name in (name for name, given in options.items() if given):
        raise InputError(f"{name} says nothing of {source}", fix=f"give it with {other} alone")


def push(
    model: Path,
    to: str,
    space: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Put an exported model on the Hugging Face Hub, and the Space that shows it.

    The token is HF_TOKEN, or that of `hf auth login`. A push that broke off goes on when it is run
    again.

    Args:
        model: Exported folder.
        to: Its id on the Hub, user/name; created where it is new.
        space: Id of a Space to show it in, user/name, pinned to the model's commit.
        private: Make new repositories private.
        dry_run: Only list what would be sent, with sizes.
    """
    from imagenet_rn50.publishing.hub import Target
    from imagenet_rn50.publishing.hub import push as push_model

    push_model(model, Target(to, space, private=private), dry_run=dry_run)
