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

from imagenet_rn50.utils.errors import InputError, require_at_least, require_positive
from imagenet_rn50.utils.logging import log_startup


def _require_local(shards: Path) -> None:
    """Raise `InputError` if `shards` is an address; as a Path it has one slash, not two."""
    if re.match(r"[a-z][a-z0-9+]+:/", str(shards)):
        raise InputError(
            f"{shards} is an address",
            expected="a folder on this machine",
            fix="pass a local copy; train_accelerate.py, evaluate and export accept addresses",
        )


def demo(folder: Path = Path("runs/demo"), data: Path = Path("data/digits")) -> None:
    """Run the whole pipeline on small real images: pack, train, export, evaluate, predict.

    Args:
        folder: Run directory; the exported model is written inside.
        data: Folder for the images and their shards.
    """
    from imagenet_rn50.tools.demo import run_demo

    run_demo(folder, data)


@dataclass(frozen=True)
class TrialOptions:
    """How --find-micro-batch tries micro batches, each in a child process."""

    precisions: tuple[Literal["no", "bf16", "fp16"], ...] = ()
    """Precisions to try; by default all of the device."""
    ranks: int | None = None
    """Processes of the launch, on all machines; by default one per GPU of this machine."""
    compile: bool = False
    """Compile the model, as `accelerate launch --dynamo_backend inductor` does."""
    margin: float = 0.1
    """Fraction of the memory to leave free."""
    timeout: float = 300.0
    """Seconds after which a child process is killed and its micro batch counts as too large."""


def doctor(
    recipe: str = "rn50-16ep",
    shards: str | None = None,
    workers: int = min(8, os.cpu_count() or 1),
    seconds: float = 5.0,
    json: bool = False,
    cache: Path | None = None,
    find_micro_batch: bool = False,
    trials: Annotated[TrialOptions, tyro.conf.arg(name="")] = TrialOptions(),
) -> None:
    """Measure this machine and report the bottleneck; exit code 1 if a run would not start.

    With --find-micro-batch, find the largest micro batch that fits into memory instead.

    Args:
        recipe: Name of the recipe that would run, or a YAML file.
        shards: Folder of the manifest, a path or an address; without it, volume and loader are not
            measured.
        workers: Loader workers of each rank.
        seconds: Duration of each measurement.
        json: Print JSON, which `estimate --measured` reads, instead of a table.
        cache: Local folder to cache remote shards in; its volume is measured.
        find_micro_batch: Find the largest micro batch that fits, in each precision, by whole
            training steps in child processes. Nothing else is measured.
        trials: Options of --find-micro-batch.
    """
    from json import dumps

    from imagenet_rn50.recipe import load_recipe

    if find_micro_batch:
        _find_micro_batch(recipe, shards, cache, trials, json=json)
        return
    if trials != TrialOptions():
        raise InputError(
            "an option of --find-micro-batch was given without it", fix="add --find-micro-batch"
        )
    from imagenet_rn50.tools.doctor import diagnose, format_diagnosis

    require_positive("--seconds", seconds)
    require_at_least("--workers", workers, 0)
    found = diagnose(load_recipe(recipe), recipe, shards, workers, seconds, cache=cache)
    print(dumps(found.to_json(), indent=2) if json else format_diagnosis(found))
    if found.blockers:
        raise SystemExit(1)


def _find_micro_batch(
    recipe: str, shards: str | None, cache: Path | None, trials: TrialOptions, *, json: bool
) -> None:
    """Print the largest micro batch in each precision; exit code 1 if none fits in any."""
    from dataclasses import asdict
    from json import dumps

    import torch

    from imagenet_rn50.classes import Classes
    from imagenet_rn50.recipe import load_recipe
    from imagenet_rn50.shards.imagenet1k import NUM_CLASSES
    from imagenet_rn50.shards.store import open_shards
    from imagenet_rn50.tools.micro_batch import Setup, find_micro_batches, format_micro_batches

    require_positive("--timeout", trials.timeout)
    if not 0 <= trials.margin < 1:
        raise InputError(f"--margin must be at least 0 and below 1, got {trials.margin:g}")
    num_gpus = torch.cuda.device_count()
    ranks = max(num_gpus, 1) if trials.ranks is None else trials.ranks
    require_at_least("--ranks", ranks, 1)
    num_classes = NUM_CLASSES
    if shards is not None:
        num_classes = len(Classes.load(open_shards(shards, cache=cache).folder).wnids)
    setup = Setup(
        load_recipe(recipe), num_classes, ranks, trials.compile, trials.margin, trials.timeout
    )
    found = find_micro_batches(setup, trials.precisions, on_gpu=num_gpus > 0)
    if json:
        print(dumps({"recipe": recipe, "ranks": ranks, "found": [asdict(each) for each in found]}))
    else:
        print(format_micro_batches(recipe, setup, found))
    if not any(each.best for each in found):
        raise SystemExit(1)


@dataclass(frozen=True)
class EstimateArguments:
    """The run, the machine, and what is known of both."""

    recipe: str | None = None
    """Name of a recipe, or a YAML file."""
    instance: str | None = None
    """Machine of the price table: an EC2 instance type, a flavor of the Hub's Jobs, or kaggle-t4x2;
    default g6.12xlarge without --measured."""
    nodes: int = 1
    """Number of instances."""
    precision: Literal["bf16", "fp16", "no"] | None = None
    """Mixed precision, or no; default bf16, or fp16 on GPUs without it."""
    target: float | None = None
    """Top-1 in (0, 1]: also list the recipes whose published result reaches it."""
    measured: Path | None = None
    """Output of `doctor --json` on the machine, instead of published speeds."""
    images_per_second: float | None = None
    """Images/s of all GPUs of a machine at 224 px, if you know it."""
    disk: float | None = None
    """MiB/s of what holds the shards during training; by default the machine's own storage."""
    price: float | None = None
    """Price of a machine, USD per hour."""
    prices: Path | None = None
    """Your own price table, like imagenet_rn50/tools/prices.yaml."""
    micro_batch: int | None = None
    """Micro batch, instead of the recipe's."""
    shards: Path | None = None
    """Local folder of shards whose images to count. Without it, the shards of --measured count, or
    ImageNet-1k if the recipe has a published result."""
    images: tuple[int, int] | None = None
    """Numbers of training and validation images, instead of --shards."""
    plan: bool = False
    """Print every step from download to export: command, hours, GB, dollars."""
    recipes: bool = False
    """Print a table of all recipes on the machine, instead of one."""
    markdown: bool = False
    """Print the table of --plan or --recipes as Markdown."""
    download: float | None = None
    """With --plan: MB/s of the download from Kaggle; by default what others report."""
    volume: float | None = None
    """With --plan: MiB/s of the volume on which the data is prepared; by default a gp3's 125."""
    volume_gb: float = 600.0
    """With --plan: GB of that volume."""


def estimate(arguments: Annotated[EstimateArguments, tyro.conf.arg(name="")]) -> None:
    """Estimate hours and cost of a run, and list every assumption.

    Args:
        arguments: The run, the machine, and what is known of both.
    """
    from imagenet_rn50.recipe import load_recipe, parse_recipe
    from imagenet_rn50.tools.estimate import Options, make_estimate
    from imagenet_rn50.tools.estimate_report import format_estimate
    from imagenet_rn50.tools.plan import PlanOptions, format_plan, make_plan
    from imagenet_rn50.tools.prices import PRICES, load_prices
    from imagenet_rn50.tools.recipe_table import format_recipes

    _check_estimate(arguments)
    prices = load_prices(arguments.prices or PRICES)
    options = Options(
        arguments.instance,
        arguments.precision,
        arguments.measured,
        arguments.images_per_second,
        arguments.disk,
        arguments.price,
        arguments.nodes,
        arguments.shards,
        arguments.images,
    )
    if arguments.recipe is None:
        print(format_recipes(prices, options, markdown=arguments.markdown))
        return
    recipe = load_recipe(arguments.recipe)
    if (micro_batch := arguments.micro_batch) is not None:
        changed = recipe.model_dump(mode="json") | {"micro_batch": micro_batch}
        source = f"{arguments.recipe} with --micro-batch {micro_batch}"
        recipe = parse_recipe(changed, source=source)
    found = make_estimate(arguments.recipe, recipe, prices, options)
    if arguments.plan:
        planned = PlanOptions(arguments.download, arguments.volume, arguments.volume_gb)
        plan = make_plan(found, planned)
        print(format_plan(plan, found, markdown=arguments.markdown))
    else:
        print(format_estimate(found, arguments.target))


def _check_estimate(arguments: EstimateArguments) -> None:
    """Raise `InputError` for options of `estimate` that contradict each other."""
    if arguments.shards is not None:
        _require_local(arguments.shards)
    target = arguments.target
    if target is not None and not 0 < target <= 1:
        raise InputError(f"--target must be a top-1 in (0, 1], such as 0.76, got {target:g}")
    if arguments.recipes == (arguments.recipe is not None):
        raise InputError(
            "--recipe and --recipes exclude each other" if arguments.recipes else "no recipe",
            expected="--recipe with a name, or --recipes for a table of all",
        )
    if arguments.recipes:
        only_one: dict[str, Any] = {
            "--plan": arguments.plan,
            "--target": target,
            "--nodes": arguments.nodes > 1,
            "--shards": arguments.shards,
            "--images": arguments.images,
            "--micro-batch": arguments.micro_batch,
            "--measured": arguments.measured,
        }
        _refuse("--recipes", "--recipe", only_one)
    if not arguments.plan:
        default = EstimateArguments()
        for name in ("download", "volume", "volume_gb"):
            if getattr(arguments, name) != getattr(default, name):
                raise InputError(f"--{name.replace('_', '-')} needs --plan", fix="add --plan")
    if arguments.plan and target is not None:
        raise InputError("--target does not apply to --plan", fix="omit one of them")
    if arguments.markdown and not (arguments.plan or arguments.recipes):
        raise InputError("--markdown needs --plan or --recipes", fix="add one of them")


def preview(
    shards: str,
    recipe: str,
    out: Path = Path("preview.png"),
    split: Literal["train", "validation"] = "train",
    start: int = 0,
    rows: int = 4,
    columns: int = 8,
    cache: Path | None = None,
) -> None:
    """Write a PNG of what the model sees, after cropping and augmentation.

    Args:
        shards: Folder of the manifest: a path or an address.
        recipe: Name of a recipe, or a YAML file.
        out: PNG file to write.
        split: The split; `train` is augmented as in training.
        start: Position of the first image; in training, the number of samples seen before it.
        rows: Rows of the grid.
        columns: Columns of the grid.
        cache: Local folder to cache remote shards in.
    """
    from imagenet_rn50.recipe import load_recipe
    from imagenet_rn50.shards.store import open_shards
    from imagenet_rn50.tools.preview import preview as write_preview

    store, loaded = open_shards(shards, cache=cache), load_recipe(recipe)
    write_preview(store, loaded, out, split=split, start=start, rows=rows, columns=columns)
    print(f"wrote {out}")


def schedule(recipe: str, shards: Path | None = None, out: Path = Path("schedule.png")) -> None:
    """Plot the learning rate of a recipe, and report warnings about its schedule.

    Args:
        recipe: Name of a recipe, or a YAML file.
        shards: Local folder of shards, to count optimizer steps.
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
    """Kill a run with kill -9, resume it, and compare it with an uninterrupted run.

    Both train in real processes on this machine. The exit code is 1 if they differ.

    Args:
        recipe: Name of a recipe, or a YAML file.
        shards: Folder of shards, or its address: s3://, https://, hf://.
        steps: Optimizer steps before the kill, and again after it.
        run: New folder to keep both runs in; without it, they are removed.
        launcher: Command that starts the script: "accelerate launch --quiet --config_file ...".
        options: Further options of train_accelerate.py: --options="--workers 4 --optimizer.lr 0.1".
    """
    from imagenet_rn50.tools.prove_resume import Proof
    from imagenet_rn50.tools.prove_resume import prove_resume as prove

    words, more = tuple(shlex.split(launcher)), tuple(shlex.split(options))
    if not prove(Proof(recipe, shards, steps, words, more), run):
        raise SystemExit(1)


@dataclass(frozen=True)
class EvaluateArguments:
    """The model, the images, and how to evaluate."""

    model: str
    """Run directory, checkpoint of a run, exported folder, or Hub id."""
    shards: str | None = None
    """Folder of shards, or its address: s3://, https://, hf://."""
    split: Literal["validation", "train"] = "validation"
    """Split of the shards."""
    real: Path | None = None
    """ImageNet-ReaL's real.json, to also evaluate with its labels."""
    images: Path | None = None
    """Folder of ImageNet-V2, -A, -R or -Sketch, instead of shards."""
    layout: Literal["imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch"] | None = None
    """Layout of that folder; detected by default."""
    classes: Path | None = None
    """List of classes (classes.json, LOC_synset_mapping.txt or Keras' imagenet_class_index.json),
    if folders are named by wnid and neither model nor shards list them."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint of a run: best validation top-1, or newest."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights of a run: averaged (EMA), raw, or whichever scored better."""
    transform: Literal["both", "training", "processor"] = "both"
    """Training's evaluation transform, the model's own processor, or both."""
    flip: bool = False
    """Also report results with logits averaged over the image and its mirror image."""
    batch: int = 128
    """Images per forward pass."""
    workers: int = min(8, os.cpu_count() or 1)
    """Loader workers of each rank."""
    cache: Path | None = None
    """Local folder to cache remote shards in."""
    out: Path | None = None
    """Folder to write metrics.json, per_class.csv and report.html to."""


def evaluate(arguments: Annotated[EvaluateArguments, tyro.conf.arg(name="")]) -> None:
    """Evaluate top-1 and top-5 of a model on shards or a test set, on any number of ranks.

    Args:
        arguments: The model, the images, and how to evaluate.
    """
    log_startup("loading the model")
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

    require_at_least("--batch", arguments.batch, 1)
    require_at_least("--workers", arguments.workers, 0)
    if arguments.out:
        require_own_folder(arguments.out)
    with joined_ranks() as state:
        loaded = load_model(arguments.model, arguments.checkpoint, arguments.weights)
        images, known = open_images(
            loaded,
            arguments.shards,
            arguments.images,
            split=arguments.split,
            layout=arguments.layout,
            classes=arguments.classes,
            cache=arguments.cache,
        )
        if images.not_counted and state.is_main_process:
            first, num_files = images.not_counted[0], sum(e.num_files for e in images.not_counted)
            logger.info(f"skipped {num_files:,} files, such as {first.path}: {first.reason}")
        evaluation = evaluate_model(
            loaded,
            images,
            transform=arguments.transform,
            flip=arguments.flip,
            batch=arguments.batch,
            num_workers=arguments.workers,
            real=read_real(arguments.real, images, len(loaded.labels)) if arguments.real else None,
        )
        if state.is_main_process:
            logger.info(results_table(evaluation.results, num_classes_counted(loaded, images)))
            if arguments.out:
                write_evaluation(arguments.out, loaded, images, evaluation, known)
                logger.info(f"wrote {arguments.out}: metrics.json, per_class.csv, report.html")


def predict(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    model: str,
    top: int = 3,
    csv: Path | None = None,
    checkpoint: Literal["best", "last"] = "best",
    weights: Literal["auto", "ema", "raw"] = "auto",
    batch: int = 32,
) -> None:
    """Print the most likely classes of images; exit code 1 if some cannot be read.

    Args:
        images: Image files, and folders of them with all below.
        model: Run directory, checkpoint of a run, exported folder, or Hub id.
        top: Classes per image.
        csv: Also write a CSV file: path, classes, probabilities, error.
        checkpoint: Checkpoint of a run: best validation top-1, or newest.
        weights: Weights of a run: averaged (EMA), raw, or whichever scored better.
        batch: Images per forward pass.
    """
    from imagenet_rn50.evaluation.load_model import load_model
    from imagenet_rn50.evaluation.predict import image_files, prediction_line, predictions_csv
    from imagenet_rn50.evaluation.predict import predict as predict_files
    from imagenet_rn50.utils.files import require_writable_file, write_text
    from imagenet_rn50.utils.formatting import counted

    require_at_least("--top", top, 1)
    require_at_least("--batch", batch, 1)
    if csv:
        require_writable_file(csv)
    files, others = image_files(images)
    loaded = load_model(model, checkpoint, weights)
    num_shown = min(top, len(loaded.labels))
    width = max(len(str(path)) for path in files)
    made = []
    for prediction in predict_files(loaded, files, top=num_shown, batch=batch):
        made.append(prediction)
        if prediction.error is None:
            print(prediction_line(prediction, loaded.labels, width), flush=True)
        else:
            text = f"error: {prediction.path} cannot be read: {prediction.error}"
            print(text, file=sys.stderr, flush=True)
    if others:
        print(f"skipped {counted(len(others), 'file')} without an image, such as {others[0]}")
    if csv:
        write_text(csv, predictions_csv(made, loaded.labels, num_shown))
        print(f"wrote {csv}")
    if num_unreadable := sum(prediction.error is not None for prediction in made):
        text = f"{num_unreadable:,} of {counted(len(made), 'image')} cannot be read"
        print(text, file=sys.stderr)
        raise SystemExit(1)


def recipes() -> None:
    """List the recipes: epochs, sizes, global batch, published top-1 with its source."""
    from imagenet_rn50.tools.recipe_list import recipe_table

    print(recipe_table())


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
    web: bool = False,
    metrics: Path | None = None,
    examples: int | None = None,
    classes: Path | None = None,
    arch: str | None = None,
    eval_resize: int | None = None,
    eval_size: int | None = None,
) -> None:
    """Export a run, or pretrained weights, to a folder for other libraries.

    Args:
        out: Folder to write.
        run: Run directory.
        from_: Pretrained weights, instead of a run: a .safetensors or .pth file of torchvision,
            timm or this project, an exported folder, or a Hub id.
        checkpoint: With --run: best validation top-1, or newest.
        weights: Averaged (EMA) or raw weights; `auto` takes whichever scored better in the run.
            With --from, required if the file holds both.
        format: Library that loads it.
        dtype: Data type of the weights.
        shards: Folder or address of shards, to compare original and export on images, to calibrate
            when the Space calls an image unfamiliar, and for --examples.
        cache: Local folder to cache remote shards in.
        web: Add ONNX models for browsers, of 8 and of 16 bits, calibrated and measured on --shards.
        metrics: metrics.json of `evaluate`, for the card; default: that of the run.
        examples: Number of validation images to copy into the export, as examples for the Space; 0
            for none. Default: 6, if there are --shards whose terms allow it.
        classes: With --from: list of classes (classes.json, LOC_synset_mapping.txt or Keras'
            imagenet_class_index.json), if the weights do not name theirs.
        arch: With --from: name of the architecture in timm (resnet50, or resnet50.a1_in1k to use
            its preprocessing too), if neither a config.json nor the file declares it.
        eval_resize: With --from: shorter side to resize images to, px; default: that of its
            configuration, or the recipes' default.
        eval_size: With --from: side of the center crop, px; same default.
    """
    from imagenet_rn50.publishing.export import ExportOptions, convert
    from imagenet_rn50.publishing.export import export as export_run
    from imagenet_rn50.shards.store import open_shards

    if (run is None) == (from_ is None):
        raise InputError("--run and --from exclude each other", expected="one of them")
    sizes = {"eval_resize": eval_resize, "eval_size": eval_size}
    given = {name: size for name, size in sizes.items() if size is not None}
    if run is not None:
        from_only = {"--classes": classes, "--arch": arch, "--eval-resize or --eval-size": given}
        _refuse("--run", "--from", from_only)
    else:
        _refuse("--from", "--run", {"--checkpoint": checkpoint != "best"})
    store = open_shards(shards, cache=cache) if shards else None
    export_options = ExportOptions(
        form=format, dtype=dtype, shards=store, metrics=metrics, web=web, examples=examples
    )
    if run is not None:
        export_run(run, out, checkpoint=checkpoint, weights=weights, options=export_options)
        return
    kind = None if weights == "auto" else weights
    convert(
        str(from_), out, classes=classes, sizes=given, kind=kind, arch=arch, options=export_options
    )


def _refuse(source: str, other: str, options: dict[str, Any]) -> None:
    """Raise `InputError` if an option of the other source was given."""
    for name in (name for name, given in options.items() if given):
        raise InputError(f"{name} does not apply to {source}", fix=f"use it with {other} only")


def web(
    model: Path, shards: str | None = None, cache: Path | None = None, port: int = 7861
) -> None:
    """Serve a page on this machine that classifies images in the browser; Ctrl-C stops it.

    Args:
        model: Exported folder.
        shards: Folder or address of shards. If the export has no models for browsers, they are
            added to it, calibrated and measured on these.
        cache: Local folder to cache remote shards in.
        port: TCP port.
    """
    from imagenet_rn50.publishing.web import has_web_models, serve_web_space

    if shards is not None and not has_web_models(model):
        log_startup("loading the model")
        from imagenet_rn50.publishing.onnx_models import add_web_models
        from imagenet_rn50.shards.store import open_shards

        add_web_models(model, open_shards(shards, cache=cache))
    serve_web_space(model, port)


def push(
    model: Path,
    to: str,
    space: str | None = None,
    web_space: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Upload an exported model, and optionally Spaces for it, to the Hugging Face Hub.

    The token is HF_TOKEN, or that of `hf auth login`. Run the same command again to resume an
    interrupted push.

    Args:
        model: Exported folder.
        to: Hub id of the model, user/name; created if it does not exist.
        space: Hub id of the Space, user/name; it is pinned to the model's commit.
        web_space: Hub id of a static Space, user/name, that classifies on the visitor's machine;
            needs an export with --web.
        private: Make new repositories private.
        dry_run: Only list the files and their sizes.
    """
    from imagenet_rn50.publishing.hub import Target
    from imagenet_rn50.publishing.hub import push as push_model

    push_model(model, Target(to, space, web_space=web_space, private=private), dry_run=dry_run)
