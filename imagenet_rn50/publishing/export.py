"""Export: from a run folder to a folder that needs nothing but transformers (contract 7).

OUT/
  config.json  model.safetensors  preprocessor_config.json  README.md
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils import logging

from imagenet_rn50.console import say
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import TEMPORARY_SUFFIX, require_free_space, sync_folder, write_text
from imagenet_rn50.model import build_model, build_processor, load_exported, logits_of
from imagenet_rn50.publishing.card import model_card
from imagenet_rn50.runs.checkpoints import newest_checkpoint
from imagenet_rn50.runs.folder import RunFolder

CONFIG = "config.json"


def export(run: Path, out: Path, *, best: bool = True) -> None:
    """Writes a model of a run as transformers loads it, and loads it back to compare.

    Args:
        run: The run folder.
        out: The new folder; an earlier export that stands there is replaced, anything else kept.
        best: The checkpoint with the best validation top-1, or the newest.

    Raises:
        InputError: When there is no such run or checkpoint, or `out` holds something else.
        RuntimeError: When the exported model does not compute what the trained one does.
    """
    folder = RunFolder(run)
    recipe, classes = folder.recipe(), folder.classes()
    checkpoint = newest_checkpoint(folder.checkpoints, best=best)
    if checkpoint is None:
        raise InputError(
            f"{run} holds no checkpoint",
            expected="at least one epoch of training",
            fix="train first, with the same --run",
        )
    if out.exists() and not (out / CONFIG).is_file() and any(out.iterdir()):
        raise InputError(
            f"{out} holds something else than an exported model",
            expected=f"a new or empty folder, or one with a {CONFIG}",
            fix="name another folder with --out",
        )
    require_free_space(out, checkpoint.weights.stat().st_size, "the exported model")

    model = build_model(recipe.model, classes)
    model.load_state_dict(load_file(checkpoint.weights))
    temporary = out.with_name(out.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        logging.disable_progress_bar()  # it is written in a moment
        model.save_pretrained(temporary)
        build_processor(recipe.data).save_pretrained(temporary)
        write_text(temporary / "README.md", model_card(run, checkpoint, recipe, classes))
        _compare(model.eval(), temporary, recipe.data.eval_size)
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(out.parent)
    say(f"exported {checkpoint.folder} to {out}: it computes the same logits")


@torch.inference_mode()
def _compare(model: torch.nn.Module, folder: Path, size: int) -> None:
    """Loads the exported folder as anybody would and compares logits.

    Raises:
        RuntimeError: When they are not equal.
    """
    exported = load_exported(folder)
    pictures = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = logits_of(model, pictures), logits_of(exported, pictures)
    if not torch.equal(ours, theirs):
        difference = (ours - theirs).abs().max().item()
        raise RuntimeError(f"the exported model's logits differ by up to {difference}")
