"""Verbs for a run and what it leaves behind: prove, evaluate, export, push."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from imagenet_rn50.errors import InputError


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
    from imagenet_rn50.prove_resume import Proof
    from imagenet_rn50.prove_resume import prove_resume as prove

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
    from imagenet_rn50.console import say
    from imagenet_rn50.evaluation.evaluate import evaluate as evaluate_model
    from imagenet_rn50.evaluation.output import (
        num_classes_counted,
        require_own_folder,
        results_table,
        write_evaluation,
    )
    from imagenet_rn50.evaluation.ranks import joined_ranks
    from imagenet_rn50.evaluation.real import read_real
    from imagenet_rn50.evaluation.subject import open_subject
    from imagenet_rn50.evaluation.target import open_target

    if asked.batch < 1 or asked.workers < 0:
        raise InputError(
            f"--batch {asked.batch} --workers {asked.workers} makes no sense",
            expected="--batch of 1 or more, --workers of 0 or more",
        )
    if asked.out:
        require_own_folder(asked.out)
    with joined_ranks() as ranks:
        subject = open_subject(asked.model, asked.checkpoint, asked.weights)
        target, known = open_target(
            subject,
            asked.shards,
            asked.images,
            split=asked.split,
            layout=asked.layout,
            classes=asked.classes,
            cache=asked.cache,
        )
        if target.not_counted and ranks.is_first:
            first, num_files = target.not_counted[0], sum(e.num_files for e in target.not_counted)
            say(f"not counted: {num_files:,} files, such as {first.path}: {first.reason}")
        evaluation = evaluate_model(
            subject,
            target,
            ranks=ranks,
            transform=asked.transform,
            flip=asked.flip,
            batch=asked.batch,
            num_workers=asked.workers,
            real=read_real(asked.real, target, len(subject.labels)) if asked.real else None,
        )
        if ranks.is_first:
            say(results_table(evaluation.results, num_classes_counted(subject, target)))
            if asked.out:
                write_evaluation(asked.out, subject, target, evaluation, known)
                say(f"wrote {asked.out}: metrics.json, per_class.csv, report.html")


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
    from imagenet_rn50.loading.cache import open_shards
    from imagenet_rn50.publishing.export import Wanted, convert
    from imagenet_rn50.publishing.export import export as export_run

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
