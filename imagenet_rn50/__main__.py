"""python -m imagenet_rn50 VERB: what there is besides sharding and training.

Verbs stand in the order of the journey. Heavy libraries are imported inside, so that --help answers
at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import tyro

from imagenet_rn50.errors import InputError, exit_on_input_error
from imagenet_rn50.files import write_json

_SCRIPT = "imagenet-rn50"  # as pyproject.toml installs it; shells complete the verbs of a name only

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
        shards: Folder that shard_imagenet.py wrote; without it, volume and loader are left out.
        workers: Loader processes of each rank.
        seconds: How long each single thing is measured.
        json: Print JSON, which `estimate --measured` reads, instead of a table.
    """
    from json import dumps

    from imagenet_rn50.machine.doctor import examine, report
    from imagenet_rn50.recipe_files import load_recipe

    if seconds <= 0 or workers < 0:
        raise InputError(
            f"--seconds {seconds:g} --workers {workers} makes no sense",
            expected="--seconds over 0, --workers of 0 or more",
        )
    found = examine(load_recipe(recipe), recipe, shards, workers, seconds)
    print(dumps(found.to_json(), indent=2) if json else report(found))
    if found.blockers:
        raise SystemExit(1)


@app.command
def estimate(
    recipe: str,
    instance: str = "g6.12xlarge",
    nodes: int = 1,
    precision: Literal["bf16", "fp16", "no"] = "bf16",
    target: float | None = None,
    measured: Path | None = None,
    images_per_second: float | None = None,
    disk: float | None = None,
    price: float | None = None,
    prices: Path | None = None,
    micro_batch: int | None = None,
) -> None:
    """Compute hours and price of a run, with every assumption, before money is spent.

    Args:
        recipe: Name of a recipe, or a YAML file.
        instance: Kind of EC2 instance, from the table of prices.
        nodes: How many of them.
        precision: Mixed precision, or no.
        target: Top-1 in [0, 1]: also list the recipes whose published figure reaches it.
        measured: What `doctor --json` printed on the machine, instead of published speeds.
        images_per_second: Speed of all GPUs of a machine at 224 px, where you know it better.
        disk: MiB/s of the volume of the shards.
        price: USD an hour of a machine.
        prices: A table of your own, like imagenet_rn50/machine/prices.yaml.
        micro_batch: Instead of the recipe's.
    """
    from imagenet_rn50.machine.prices import PRICES, load_prices
    from imagenet_rn50.machine.quote import Options, make_quote
    from imagenet_rn50.machine.quote_text import text_of
    from imagenet_rn50.recipe_files import load_recipe, parse_recipe

    loaded = load_recipe(recipe)
    if micro_batch is not None:
        changed = loaded.model_dump(mode="json") | {"micro_batch": micro_batch}
        loaded = parse_recipe(changed, source=f"{recipe} with --micro-batch {micro_batch}")
    options = Options(precision, measured, images_per_second, disk, price, nodes)
    quote = make_quote(recipe, loaded, instance, load_prices(prices or PRICES), options)
    print(text_of(quote, target))


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
    model: Path,
    shards: str,
    split: Literal["validation", "train"] = "validation",
    batch: int = 128,
    workers: int = min(8, os.cpu_count() or 1),
    cache: Path | None = None,
    out: Path | None = None,
) -> None:
    """Count how often an exported model is right over shards.

    Args:
        model: Exported folder.
        shards: Folder that shard_imagenet.py wrote, or its address: s3://, https://, hf://.
        split: Which images.
        batch: Images in a forward pass.
        workers: Loader processes.
        cache: Folder of this machine to keep remote shards in.
        out: JSON file to write the result to.
    """
    from imagenet_rn50.evaluation.exported import evaluate_exported
    from imagenet_rn50.loading.cache import open_shards

    measured = evaluate_exported(
        model, open_shards(shards, cache=cache), split=split, batch=batch, num_workers=workers
    )
    print(
        f"top-1 {measured['top1']:.2%}, top-5 {measured['top5']:.2%} "
        f"on {measured['num_images']} images of {split}"
    )
    if out:
        write_json(out, measured)


def main() -> None:
    """Runs the verb that the command line names."""
    installed = Path(sys.argv[0]).name == _SCRIPT
    prog = _SCRIPT if installed else "python -m imagenet_rn50"
    with exit_on_input_error():
        app.cli(prog=prog, description=__doc__.splitlines()[0])


if __name__ == "__main__":
    main()
