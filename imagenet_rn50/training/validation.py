"""Evaluation during training: raw and averaged weights, counted exactly, written down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from imagenet_rn50.console import say
from imagenet_rn50.evaluation.metrics import Accuracy
from imagenet_rn50.evaluation.validate import validate
from imagenet_rn50.formatting import counted, percent
from imagenet_rn50.loading.loader import Batch
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.metrics import Journal
from imagenet_rn50.runs.report import write_logs
from imagenet_rn50.training.ending import require_finite
from imagenet_rn50.training.learner import Learner
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.schedules import Plateau, learning_rate
from imagenet_rn50.training.session import Session
from imagenet_rn50.training.trackers import track


def evaluate(
    learner: Learner,
    session: Session,
    progress: Progress,
    journal: Journal | None,
    between_batches: Callable[[], object],
) -> float:
    """Evaluates after an epoch, tells the plateau rule, and writes it down; all ranks call it.

    Args:
        learner: What is evaluated.
        session: What stays the same.
        progress: Where the run stands.
        journal: On the one rank that writes.
        between_batches: Called by every rank equally often; what it raises ends the evaluation, of
            which nothing is written down then.

    Returns:
        What the best is chosen by, in [0, 1].

    Raises:
        InputError: When the loss is not finite, before anything is written.
    """
    began = time.perf_counter()
    accuracy = _accuracy(learner.bare, session, between_batches)
    require_finite(accuracy.loss, session, f"in validation, after epoch {progress.epoch:.2f}")
    line: dict[str, Any] = accuracy.as_dict()
    told = f"epoch {progress.epoch:.2f}: {accuracy.describe(learner.num_classes)}"
    if learner.ema:
        averaged = _accuracy(learner.ema.model, session, between_batches)
        line |= {f"ema_{key}": value for key, value in averaged.as_dict().items()}
        told += f"; averaged weights: top-1 {percent(averaged.top1)}"
    logged = {f"validation/{key}": value for key, value in line.items()}
    track(session.accelerator, logged, progress.samples_seen)
    cut = learner.plateau.after_validation(progress.epoch, accuracy.loss)
    score = metrics.score(line)
    if journal is None:
        return score
    is_best = score > journal.best_score()
    seconds = time.perf_counter() - began
    place = progress.samples_seen, progress.epoch
    written = journal.write(metrics.VALIDATION, *place, **line, seconds=seconds, is_best=is_best)
    told += ", the best so far" * is_best
    if "cost_usd" in written:
        told += f"; {written['cost_usd']:.2f} USD spent"
    if "cost_left_usd" in written:
        told += f", about {written['cost_left_usd']:.2f} to come"
    say(told)
    if cut and not progress.finished:  # a last cut changes nothing
        say(_told_of_cut(session.recipe, progress, learner.plateau))
    with journal.tolerating("logs.md"):
        write_logs(session.folder.path)
    return score


def _told_of_cut(recipe: Recipe, progress: Progress, plateau: Plateau) -> str:
    """Says that a plateau has just cut the learning rate."""
    waited = counted((recipe.schedule.plateau_patience or 0) + 1, "evaluation")
    rate = learning_rate(recipe, progress.epoch, plateau.num_cuts)
    return (
        f"the validation loss has not fallen for {waited}: the learning rate is cut to {rate:.3g}"
    )


def _accuracy(
    model: nn.Module, session: Session, between_batches: Callable[[], object]
) -> Accuracy:
    """Evaluates one set of weights on all ranks together."""
    accelerator, batch = session.accelerator, session.recipe.micro_batch
    # Ranks differ by one batch; those that all of them have are the last rank's.
    num_batches = -(-session.validation.num_samples // batch)
    remaining = iter(range(num_batches // accelerator.num_processes))

    def on_batch(host: Batch, logits: Tensor) -> None:
        if next(remaining, None) is not None:
            between_batches()

    return validate(
        model,
        session.shards,
        session.validation,
        session.recipe.data,
        device=accelerator.device,
        batch=batch,
        num_workers=session.num_workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        reduce=session.add_up,
        on_batch=on_batch,
    )
