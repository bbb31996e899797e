r"""Train from shards under `accelerate launch`.

Intentionally kept short: it parses, builds and calls; the logic is in
`imagenet_rn50.training.trainer`.

    accelerate launch --quiet --config_file accelerate_configs/cpu.yaml train_accelerate.py \
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
from imagenet_rn50.training.config import CheckpointConfig, check_trackio_space
from imagenet_rn50.utils.errors import InputError, exit_on_input_error, require_at_least
from imagenet_rn50.utils.logging import ignore_output_errors, log_startup
from imagenet_rn50.utils.signals import (
    exit_on_interrupt,
    launcher,
    read_int_env,
    set_parent_death_signal,
)
from imagenet_rn50.utils.version import print_version_and_exit


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train a model from shards. Run the same command again to resume.

    Devices and mixed precision are options of the launcher: `accelerate launch --mixed_precision
    bf16 train_accelerate.py ...`. Below: the run, then checkpointing, then hyperparameters, each a
    field of the recipe: --optimizer.lr 0.1
    """

    recipe: str
    """Name of a recipe in imagenet_rn50/recipes, or a YAML file."""
    shards: str
    """Folder that shard_imagenet.py wrote, or its address: s3://, https://, hf://."""
    run: Path
    """Run directory: created, or resumed."""
    workers: int = min(8, os.cpu_count() or 1)
    """Loader processes per rank."""
    init_from: str | None = None
    """Pretrained weights to fine-tune in a new run: a .safetensors or .pth file of torchvision,
    timm or this project, an exported folder, or a Hub id."""
    init_weights: Literal["raw", "ema"] | None = None
    """Raw or averaged (EMA) weights, if --init-from holds both."""
    on_corrupt: Literal["stop", "substitute"] = "stop"
    """What to do with a damaged sample: stop, or substitute another one (at most 100 per rank)."""
    cache: Path | None = None
    """Local folder to cache remote shards in, best on NVMe."""
    cache_gb: float = 100.0
    """Size limit of the cache, GB."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Accelerate's trackers to log to; wandb and trackio must be installed."""
    trackio_space: str | None = None
    """Space on the Hub, OWNER/NAME, that trackio syncs the run's dashboard to; created if it does
    not exist. The model card links it."""
    find_lr: bool = False
    """Suggest a peak learning rate instead of training: writes lr_finder.json and .png into the
    run directory."""
    profile: int | None = None
    """Profile this many steps, after a warm-up of five: writes a trace and a table of each rank
    into the run directory (docs/performance.md)."""
    checkpointing: Annotated[CheckpointConfig, tyro.conf.arg(name="")] = CheckpointConfig()
    """How the run is checkpointed, resumed and stopped."""
    hyperparameters: Annotated[Recipe, tyro.conf.arg(name="")]
    """Changes to the recipe."""


def parse(arguments: list[str]) -> Arguments:
    """Parse the command line; the recipe gives the defaults of all hyperparameters.

    Args:
        arguments: The command line, without the program's name.

    Raises:
        InputError: If the recipe does not exist or is invalid, or a number is out of range.
        SystemExit: With code 0 after --help, 2 if an argument is invalid.
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
        raise InputError(f"invalid hyperparameters: {explain(error)}") from None
    require_at_least("--workers", parsed.workers, 0)
    require_at_least("--cache-gb", parsed.cache_gb, 0)
    if parsed.trackio_space is not None:
        check_trackio_space(parsed.trackio_space, parsed.trackers)
    if parsed.profile is not None:
        require_at_least("--profile", parsed.profile, 1)
    if parsed.find_lr:
        config = parsed.checkpointing
        unused = {
            "--profile": parsed.profile,
            "--stop-at-step": config.stop_at_step,
            "--max-hours": config.max_hours,
            "--stop-at": config.stop_at,
        }
        for name, value in unused.items():
            if value is not None:
                raise InputError(f"{name} contradicts --find-lr", fix="pass only one of them")
    return parsed


def main() -> None:
    """Train, or find a learning rate, as the command line says."""
    print_version_and_exit(sys.argv[1:])
    if launcher().words:
        set_parent_death_signal(signal.SIGTERM)
    with ignore_output_errors(), exit_on_input_error(), exit_on_interrupt():
        arguments = parse(sys.argv[1:])
        log_startup("importing torch, transformers and accelerate")

        # Imported after parsing: --help and wrong arguments answer at once.
        from imagenet_rn50.runs.run_dir import RunDir
        from imagenet_rn50.shards.store import open_shards
        from imagenet_rn50.training.accelerator import make_accelerator, out_of_memory_explained
        from imagenet_rn50.training.lr_finder import find_lr
        from imagenet_rn50.training.trackers import require_hub_token
        from imagenet_rn50.training.trainer import Trainer

        if (num_ranks := read_int_env("WORLD_SIZE") or 1) > 1:
            log_startup(f"joining {num_ranks} ranks")
        if arguments.trackio_space is not None:
            require_hub_token()
        accelerator = make_accelerator(arguments.run, arguments.trackers)
        is_main = accelerator.is_main_process
        log_startup("reading the manifest of the shards and building the model")
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
                profile=arguments.profile,
                trackio_space=arguments.trackio_space,
            )
            with out_of_memory_explained(trainer.recipe.micro_batch):
                if arguments.find_lr:
                    find_lr(trainer)
                else:
                    trainer.train()


if __name__ == "__main__":
    main()
