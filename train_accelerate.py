r"""Trains from shards under `accelerate launch`: parses, makes recipe and Accelerator, fits.

Kept short on purpose: the logic is in `imagenet_rn50.training`, where it is tested.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_accelerate.py \
        --recipe digits --shards data/digits/shards --run runs/digits --optimizer.lr 0.1
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ValidationError

from imagenet_rn50.recipe import Recipe, explain, load_recipe
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.utils.errors import InputError, exit_on_input_error, require_at_least
from imagenet_rn50.utils.logging import ignore_output_errors
from imagenet_rn50.utils.signals import launcher, set_parent_death_signal


@dataclass(frozen=True)
class Arguments:
    """Trains a model from shards, going on where the run folder stands.

    Every field of the recipe can be changed on the command line: --optimizer.lr 0.1
    """

    recipe: str
    """Name of a recipe that ships with the package, or a YAML file."""
    shards: str
    """Folder that shard_imagenet.py wrote, or its address: s3://, https://, hf://."""
    run: Path
    """Run folder: created, or gone on with."""
    hyperparameters: Annotated[Recipe, tyro.conf.arg(name="")]
    """Changes to the recipe."""
    init_from: str | None = None
    """Weights that a new run begins with, to fine-tune them: a .safetensors or .pth file of
    torchvision's, timm's or ours, an exported folder, or a Hub id."""
    init_weights: Literal["raw", "ema"] | None = None
    """Which of them, where a file holds both: averaged (EMA) weights, or raw ones."""
    on_corrupt: Literal["stop", "substitute"] = "stop"
    """What a damaged sample does: stop the run, or let another one stand in for it; more than 100
    damaged samples of one rank stop it all the same."""
    cache: Path | None = None
    """Folder of this machine, best on its own NVMe, to keep remote shards in."""
    cache_gb: float = 100.0
    """Space that remote shards may take there, GB."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where else to log: Accelerate's trackers. wandb and trackio must be installed."""
    find_lr: bool = False
    """Instead of training, try growing learning rates and suggest a peak: lr_finder.json and .png
    in the run folder; the weights stay as they are."""
    workers: int = min(8, os.cpu_count() or 1)
    """Loader processes of each rank."""
    checkpointing: Annotated[CheckpointConfig, tyro.conf.arg(name="")] = CheckpointConfig()
    """How the run is checkpointed, resumed and stopped."""


def parse(arguments: list[str]) -> Arguments:
    """Reads the command line; the recipe it names gives the defaults of all hyperparameters.

    Args:
        arguments: The command line, without the program's name.

    Raises:
        InputError: When there is no such recipe, it is not valid, or a number makes no sense.
        SystemExit: With code 0 after --help, 2 when an argument is wrong.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    name = first.parse_known_args(arguments)[0].recipe
    defaults = Arguments(
        recipe=tyro.MISSING,
        shards=tyro.MISSING,
        run=tyro.MISSING,
        hyperparameters=load_recipe(name) if name else Recipe(),
    )
    try:
        parsed = tyro.cli(Arguments, args=arguments, default=defaults)
    except ValidationError as error:
        raise InputError(f"the changes make no valid recipe: {explain(error)}") from None
    require_at_least("--workers", parsed.workers, 0)
    require_at_least("--cache-gb", parsed.cache_gb, 0)
    return parsed


def main() -> None:
    """Trains as the command line says."""
    if launcher().words:
        set_parent_death_signal(signal.SIGTERM)
    with ignore_output_errors(), exit_on_input_error():
        arguments = parse(sys.argv[1:])

        # After parsing, so that --help and mistakes answer at once.
        from imagenet_rn50.data.cache import open_shards
        from imagenet_rn50.runs.run_dir import RunDir
        from imagenet_rn50.training.accelerator import make_accelerator
        from imagenet_rn50.training.lr_finder import find_lr
        from imagenet_rn50.training.trainer import Trainer

        accelerator = make_accelerator(arguments.run, arguments.trackers)
        is_main = accelerator.is_main_process
        with RunDir(arguments.run).lock() if is_main else nullcontext():
            trainer = Trainer(
                arguments.hyperparameters,
                open_shards(
                    arguments.shards,
                    cache=arguments.cache,
                    limit_bytes=int(arguments.cache_gb * 1e9),
                ),
                arguments.run,
                accelerator,
                arguments.workers,
                on_corrupt=arguments.on_corrupt,
                config=arguments.checkpointing,
                create=not arguments.find_lr,
                init_from=arguments.init_from,
                init_weights=arguments.init_weights,
            )
            if arguments.find_lr:
                find_lr(trainer)
            else:
                trainer.train()


if __name__ == "__main__":
    main()
