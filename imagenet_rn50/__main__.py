"""python -m imagenet_rn50 VERB: what there is besides sharding and training.

Verbs stand in the order of the journey. Heavy libraries are imported inside, so that --help answers
at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Literal

import tyro

from imagenet_rn50.errors import exit_on_input_error

app = tyro.extras.SubcommandApp()


@app.command
def demo(folder: Path = Path("runs/demo"), data: Path = Path("data/digits")) -> None:
    """Take real pictures down the whole path: pack, train, export, evaluate, predict.

    Args:
        folder: Run folder of the demo; the exported model goes inside.
        data: Where the digits and their shards go.
    """
    from imagenet_rn50.demo import run_demo

    run_demo(folder, data)


@app.command
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
        shards: Folder that shard_imagenet.py wrote.
        recipe: Name of a recipe, or a YAML file.
        out: PNG file to write.
        split: The training stream, or what validation sees.
        start: Position of the first picture: in training, the images seen before it.
        rows: Rows of the grid.
        columns: Pictures in a row.
    """
    from imagenet_rn50.loading.preview import preview as write_preview
    from imagenet_rn50.recipe_files import load_recipe

    write_preview(
        shards, load_recipe(recipe), out, split=split, start=start, rows=rows, columns=columns
    )
    print(f"wrote {out}")


@app.command
def schedule(recipe: str, out: Path = Path("schedule.png")) -> None:
    """Draw the learning rate of a recipe, and say what a run of it would leave out.

    Args:
        recipe: Name of a recipe, or a YAML file.
        out: PNG file to write.
    """
    from imagenet_rn50.recipe_files import load_recipe
    from imagenet_rn50.training.show_schedule import draw_schedule, schedule_in_words

    loaded = load_recipe(recipe)
    draw_schedule(loaded, Path(recipe).stem, out)
    print(schedule_in_words(loaded))
    print(f"wrote {out}")


@app.command(name="prove-resume")
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


@app.command
def export(run: Path, out: Path, checkpoint: Literal["best", "last"] = "best") -> None:
    """Write a trained model as a folder that needs nothing but transformers.

    Args:
        run: Run folder of the training.
        out: Folder to write.
        checkpoint: The one with the best validation top-1, or the newest.
    """
    from imagenet_rn50.publishing.export import export as export_run

    export_run(run, out, best=checkpoint == "best")


@app.command
def evaluate(
    model: str,
    shards: str | None = None,
    split: Literal["validation", "train"] = "validation",
    real: Path | None = None,
    images: Path | None = None,
    layout: Literal["imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch"] | None = None,
    classes: Path | None = None,
    checkpoint: Literal["best", "last"] = "best",
    weights: Literal["raw", "ema"] | None = None,
    transform: Literal["both", "training", "processor"] = "both",
    flip: bool = False,
    batch: int = 128,
    workers: int = min(8, os.cpu_count() or 1),
    cache: Path | None = None,
    out: Path | None = None,
) -> None:
    """Count how often a model is right, over shards or a test set of files, on any number of ranks.

    Args:
        model: Run folder, exported folder, or Hub id.
        shards: Folder that shard_imagenet.py wrote, or its address: s3://, https://, hf://.
        split: Which images of the shards.
        real: ImageNet-ReaL's real.json, to count the validation images by its labels, too.
        images: Folder of ImageNet-V2, -A, -R or -Sketch, instead of shards.
        layout: How that is laid out; found out by itself.
        classes: classes.json or LOC_synset_mapping.txt, where folders are named by wnid and neither
            the model nor the shards say its classes.
        checkpoint: Of a run: the one with the best validation top-1, or the newest.
        weights: Of a run: raw or averaged; averaged where there are any.
        transform: Training's evaluation transform, the processor shipped with the model, or both.
        flip: Also average with the logits of the mirrored picture, and report that apart.
        batch: Images in a forward pass.
        workers: Loader processes of each rank.
        cache: Folder of this machine to keep remote shards in.
        out: Folder to write metrics.json, per_class.csv and report.html to.
    """
    from imagenet_rn50.console import say
    from imagenet_rn50.evaluation.evaluate import evaluate as evaluate_model
    from imagenet_rn50.evaluation.output import results_table, write_evaluation
    from imagenet_rn50.evaluation.ranks import joined_ranks
    from imagenet_rn50.evaluation.real import read_real
    from imagenet_rn50.evaluation.subject import open_subject
    from imagenet_rn50.evaluation.target import open_target

    with joined_ranks() as ranks:
        subject = open_subject(model, checkpoint, weights)
        target, known = open_target(
            subject, shards, images, split=split, layout=layout, classes=classes, cache=cache
        )
        evaluation = evaluate_model(
            subject,
            target,
            ranks=ranks,
            transform=transform,
            flip=flip,
            batch=batch,
            num_workers=workers,
            real=read_real(real, target, len(subject.labels)) if real else None,
        )
        if ranks.is_first:
            say(results_table(evaluation.results))
            if out:
                write_evaluation(out, subject, target, evaluation, known)
                say(f"wrote {out}: metrics.json, per_class.csv, report.html")


def main() -> None:
    """Runs the verb that the command line names."""
    with exit_on_input_error():
        app.cli(prog="python -m imagenet_rn50", description=__doc__.splitlines()[0])


if __name__ == "__main__":
    main()
