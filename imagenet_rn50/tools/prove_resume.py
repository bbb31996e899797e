"""Prove that resuming is exact, on the user's own recipe and shards, in real processes.

One run is uninterrupted. The other is killed with kill -9 in the middle and resumed. Both save
checkpoints after the same steps, and these are compared.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.runs.checkpoint import Checkpoint, checkpoint_folders, verify
from imagenet_rn50.runs.metrics import START, TRAIN, read_metrics
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.utils.errors import InputError, require_at_least
from imagenet_rn50.utils.files import make_folder
from imagenet_rn50.utils.formatting import counted
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.signals import kill_tree, redact_command

_SCRIPT = Path(__file__).parents[2] / "train_accelerate.py"
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Proof:
    """The runs to compare.

    Attributes:
        recipe: Name of a recipe, or a YAML file.
        shards: Folder or address of the shards.
        steps: Optimizer steps before the kill, and again after it.
        launcher: Command line before the script: Python, or a launcher with its options.
        options: Further options of train_accelerate.py.
    """

    recipe: str
    shards: str
    steps: int
    launcher: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two saves."""
        return max(1, self.steps // 2)

    @property
    def kill_step(self) -> int:
        """The step to kill at or after: the last save within `steps`."""
        return self.checkpoint_steps * (self.steps // self.checkpoint_steps)

    def command(self, run: Path) -> list[str]:
        """Return the command that trains in a run directory.

        Checkpoints are saved by steps only: saves by the clock would differ between the runs. Those
        of all steps and of two epochs are kept; of further ones, both runs remove the same.
        """
        num_kept = 2 * self.steps // self.checkpoint_steps + 2
        saving = ["--checkpoint-steps", str(self.checkpoint_steps), "--checkpoint-minutes", "None"]
        saving += ["--keep-last", str(num_kept)]
        ending = ["--stop-at-step", str(2 * self.steps)]
        named = ["--recipe", self.recipe, "--shards", self.shards, "--run", str(run)]
        return [*self.launcher, str(_SCRIPT), *named, *saving, *ending, *self.options]


def prove_resume(proof: Proof, folder: Path | None) -> bool:
    """Run both, and log their checkpoints side by side.

    Args:
        proof: The runs to compare.
        folder: A new folder to keep both runs in; None removes them.

    Returns:
        Whether the checkpoints are the same.

    Raises:
        InputError: If there are too few steps, or the folder is not empty.
        SystemExit: With the exit code of a run that fails by itself.
    """
    require_at_least("--steps", proof.steps, 1)
    with _runs_folder(folder) as runs:
        uninterrupted, resumed = runs / "uninterrupted", runs / "resumed"
        logger.info(f"== An uninterrupted run of {2 * proof.steps} steps")
        _train(proof.command(uninterrupted))
        logger.info(
            f"\n== The same, killed with kill -9 after {counted(proof.kill_step, 'step')} or more"
        )
        _train_and_kill(proof, resumed)
        logger.info("\n== The same command again")
        _train(proof.command(resumed))
        checkpoint = read_metrics(resumed, START)[-1].get("checkpoint")
        if checkpoint is None:
            raise InputError(
                "nothing was resumed: no checkpoint was complete at the kill",
                expected="a checkpoint to resume from",
                fix=f"pass more --steps than {proof.steps}",
            )
        logger.info(f"It resumed from {checkpoint}.\n")
        return compare(uninterrupted, resumed)


@contextmanager
def _runs_folder(folder: Path | None) -> Iterator[Path]:
    """Yield the folder for both runs: the user's, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="prove-resume-") as name:
            yield Path(name)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty", expected="a new folder for the two runs")
    make_folder(folder, fix="pass another folder as --run")
    yield folder


def _train(command: list[str]) -> None:
    """Log a command and run it."""
    logger.info(f"$ {redact_command(command)}")
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        raise SystemExit(code)


def _train_and_kill(proof: Proof, run: Path) -> None:
    """Kill a run, with all its processes, at the kill step, most likely while it saves.

    Raises:
        InputError: If it ends earlier.
    """
    command = proof.command(run)
    logger.info(f"$ {redact_command(command)}")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while _last_step(run) < proof.kill_step:
            if (code := process.poll()) is not None:
                raise InputError(
                    "the training ended before it could be killed",
                    expected=f"a run of more than {2 * proof.steps} steps",
                    found=f"exit code {code} after step {_last_step(run)}",
                    fix="pass fewer --steps",
                )
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
        with suppress(ProcessLookupError):  # orphaned children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_step(run: Path) -> int:
    """Return the last step in a run's metrics.jsonl."""
    if not (run / "metrics.jsonl").is_file():
        return 0
    lines = read_metrics(run, TRAIN)
    return lines[-1]["samples_seen"] // RunDir(run).recipe().global_batch if lines else 0


def compare(uninterrupted: Path, resumed: Path) -> bool:
    """Log the checkpoints of both runs side by side; return whether they are the same."""
    ours, theirs = _saved(resumed), _saved(uninterrupted)
    logger.info(f"{'':>8}  {'uninterrupted':<48}    {'resumed':<48}")
    head = f"{'sample ids':<16}  {'learning rate':>14}  {'weights':<12}"
    logger.info(f"{'step':>8}  {head:<48}    {head}")
    for step in sorted(ours.keys() | theirs.keys()):
        there, here = theirs.get(step), ours.get(step)
        is_other = there and here and _hashes(there) != _hashes(here)
        mark = "   DIFFERENT" if is_other else ""
        logger.info(f"{step:>8}  {_row(there):<48}    {_row(here):<48}{mark}")
    is_same = (
        bool(theirs)
        and ours.keys() == theirs.keys()
        and all(_hashes(ours[step]) == _hashes(theirs[step]) for step in theirs)
    )
    if is_same:
        logger.info(
            "\nBit-identical after each of these steps: samples, learning rates, weights, "
            "optimizer state."
        )
    elif not theirs or ours.keys() != theirs.keys():
        logger.info("\nThe runs saved at different steps, so they cannot be compared.")
    elif _progress(ours[max(ours)]) == _progress(theirs[max(theirs)]):
        logger.info(
            "\nSamples and learning rates are the same, weights or other state differ. On a GPU, "
            "kernels that sum in any order cause this in two uninterrupted runs, too."
        )
    else:
        logger.info("\nThe runs differ.")
    return is_same


def _saved(run: Path) -> dict[int, Checkpoint]:
    """Return a run's checkpoints by step, verified."""
    batch = RunDir(run).recipe().global_batch
    found = [verify(folder) for folder in checkpoint_folders(run / "checkpoints")]
    return {checkpoint.samples_seen // batch: checkpoint for checkpoint in found}


def _progress(checkpoint: Checkpoint) -> tuple[str, float]:
    """Return the hash of the samples seen, and the next learning rate."""
    return checkpoint.metadata["sample_hash"], checkpoint.metadata["next_lr"]


def _hashes(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Return everything that must be the same in two runs."""
    return (*_progress(checkpoint), checkpoint.files)


def _row(checkpoint: Checkpoint | None) -> str:
    """Return a checkpoint as a row of the table."""
    if checkpoint is None:
        return "nothing"
    samples, rate = _progress(checkpoint)
    weights = checkpoint.files[checkpoint.weights.name]["sha256"]
    return f"{samples}  {rate:>14.10f}  {weights[:12]}"
