"""Verbs for before a run: the whole path once, the machine, the price, the data, the schedule."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from imagenet_rn50.errors import InputError


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
    from imagenet_rn50.demo import run_demo

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

    from imagenet_rn50.machine.doctor import examine, report
    from imagenet_rn50.recipe_files import load_recipe

    if shards is not None:
        _require_local(shards)
    if not 0 < seconds < float("inf") or workers < 0:
        raise InputError(
            f"--seconds {seconds:g} --workers {workers} makes no sense",
            expected="--seconds over 0, --workers of 0 or more",
        )
    found = examine(load_recipe(recipe), recipe, shards, workers, seconds)
    print(dumps(found.to_json(), indent=2) if json else report(found))
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
        prices: A table of your own, like imagenet_rn50/machine/prices.yaml.
        micro_batch: Instead of the recipe's.
        shards: Folder on this machine that shard_imagenet.py wrote, to count its images; without
            it those that were --measured, or ImageNet-1k's for a recipe with a published figure.
        images: Instead of shards that are not there yet: training and validation images.
    """
    from imagenet_rn50.machine.prices import PRICES, load_prices
    from imagenet_rn50.machine.quote import Options, make_quote
    from imagenet_rn50.machine.quote_text import text_of
    from imagenet_rn50.recipe_files import load_recipe, parse_recipe

    if target is not None and not 0 < target <= 1:
        raise InputError(
            f"--target {target:g} is no top-1", expected="a fraction, such as 0.76 for 76%"
        )
    loaded = load_recipe(recipe)
    if micro_batch is not None:
        changed = loaded.model_dump(mode="json") | {"micro_batch": micro_batch}
        loaded = parse_recipe(changed, source=f"{recipe} with --micro-batch {micro_batch}")
    if shards is not None:
        _require_local(shards)
    options = Options(
        precision, measured, images_per_second, disk, price, nodes, shards=shards, images=images
    )
    quote = make_quote(recipe, loaded, instance, load_prices(prices or PRICES), options)
    print(text_of(quote, target))


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
    from imagenet_rn50.loading.preview import preview as write_preview
    from imagenet_rn50.recipe_files import load_recipe

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
    from imagenet_rn50.recipe_files import load_recipe
    from imagenet_rn50.shards.manifest import TRAIN, Manifest
    from imagenet_rn50.training.show_schedule import draw_schedule, schedule_in_words

    loaded, num_train = load_recipe(recipe), None
    if shards is not None:
        _require_local(shards)
        num_train = Manifest.load(shards).split(TRAIN).num_samples
    draw_schedule(loaded, Path(recipe).stem, out)
    print(schedule_in_words(loaded, num_train))
    print(f"wrote {out}")
