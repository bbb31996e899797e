"""The proof of a resume, before the user's eyes: on their own recipe and shards, in real processes.

One run is never disturbed. Its twin is killed with kill -9 in the middle and started again. Both
save after the same steps, and what they saved is set side by side.
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
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import make_folder
from imagenet_rn50.utils.formatting import counted
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.signals import kill_tree, redact_command

_SCRIPT = Path(__file__).parents[2] / "train_accelerate.py"
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Proof:
    """What is trained, and how.

    Attributes:
        recipe: Name of a recipe, or a YAML file.
        shards: Folder of the shards, or its address.
        steps: Steps before the kill, and again after it.
        launcher: Words before the script: a Python, or a launcher with its options.
        options: More options of train_accelerate.py.
    """

    recipe: str
    shards: str
    steps: int
    launcher: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def every(self) -> int:
        """Steps between two saves."""
        return max(1, self.steps // 2)

    @property
    def enough(self) -> int:
        """Steps before the kill, at least: whole intervals between saves."""
        return self.every * (self.steps // self.every)

    def command(self, run: Path) -> list[str]:
        """Returns the command that trains in a folder and saves along the way.

        Only steps decide when: the clock would save each run elsewhere. Room is kept for the saves
        of all steps and of two ends of epochs; where there are more, both runs lose the same ones.
        """
        num_kept = 2 * self.steps // self.every + 2
        saving = ["--checkpoint-steps", str(self.every), "--checkpoint-minutes", "None"]
        saving += ["--keep-last", str(num_kept)]
        ending = ["--stop-at-step", str(2 * self.steps)]
        named = ["--recipe", self.recipe, "--shards", self.shards, "--run", str(run)]
        return [*self.launcher, str(_SCRIPT), *named, *saving, *ending, *self.options]


def prove_resume(proof: Proof, folder: Path | None) -> bool:
    """Runs both, prints what they saved side by side, and says whether it is the same.

    Args:
        proof: What is trained, and how.
        folder: New folder to leave both runs in; None removes them.

    Returns:
        Whether the interrupted run saved the same as the undisturbed one.

    Raises:
        InputError: If the steps are too few, or the folder is in use.
        SystemExit: With the exit code of a training that failed by itself.
    """
    if proof.steps < 1:
        raise InputError(f"--steps {proof.steps}", expected="at least 1")
    with _place(folder) as place:
        undisturbed, interrupted = place / "undisturbed", place / "interrupted"
        logger.info(f"== A run of {2 * proof.steps} steps that nothing disturbs")
        _train(proof.command(undisturbed))
        logger.info(
            f"\n== Its twin, killed with kill -9 after {counted(proof.enough, 'step')} or more"
        )
        _kill_on_the_way(proof, interrupted)
        logger.info("\n== The same command again")
        _train(proof.command(interrupted))
        resumed = read_metrics(interrupted, START)[-1].get("checkpoint")
        if resumed is None:
            raise InputError(
                "nothing was resumed, so nothing is proven: no checkpoint was whole at the kill",
                expected="a checkpoint to resume from",
                fix=f"ask for more --steps than {proof.steps}",
            )
        logger.info(f"It resumed from {resumed}.\n")
        return compare(undisturbed, interrupted)


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """Yields the folder for both runs: the user's, or one that is removed."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="prove-resume-") as name:
            yield Path(name)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty", expected="a new folder for the two runs")
    make_folder(folder, fix="name another folder with --run")
    yield folder


def _train(command: list[str]) -> None:
    """Shows a command and runs it to its end."""
    logger.info(f"$ {redact_command(command)}")
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        raise SystemExit(code)


def _kill_on_the_way(proof: Proof, run: Path) -> None:
    """Kills a training, all of it, once it tells of enough steps, most likely while it saves.

    Raises:
        InputError: If it ends before.
    """
    command, enough = proof.command(run), proof.enough
    logger.info(f"$ {redact_command(command)}")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while _steps_told(run) < enough:
            if (code := process.poll()) is not None:
                raise InputError(
                    "the training ended before it could be killed",
                    expected=f"a run of more than {2 * proof.steps} steps",
                    found=f"exit code {code} after step {_steps_told(run)}",
                    fix="ask for fewer --steps",
                )
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
        with suppress(ProcessLookupError):  # children that ended up without a parent
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _steps_told(run: Path) -> int:
    """Returns the last step that a run's journal tells of."""
    if not (run / "metrics.jsonl").is_file():
        return 0
    lines = read_metrics(run, TRAIN)
    return lines[-1]["samples_seen"] // RunDir(run).recipe().global_batch if lines else 0


def compare(undisturbed: Path, interrupted: Path) -> bool:
    """Prints what both runs saved, side by side; returns whether it is the same."""
    ours, theirs = _saved(interrupted), _saved(undisturbed)
    logger.info(f"{'':>8}  {'undisturbed':<48}    {'interrupted':<48}")
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
            "\nThe same after each of these steps, to the last bit: samples, learning rates, "
            "weights, momenta."
        )
    elif not theirs or ours.keys() != theirs.keys():
        logger.info("\nThe runs saved at other steps, so they cannot be compared.")
    elif _told(ours[max(ours)]) == _told(theirs[max(theirs)]):
        logger.info(
            "\nThe samples and the next learning rate are the same, what was saved beside them is "
            "not. On a GPU, kernels that add in any order do that in two undisturbed runs too."
        )
    else:
        logger.info("\nThe runs differ.")
    return is_same


def _saved(run: Path) -> dict[int, Checkpoint]:
    """Returns a run's checkpoints by step, each verified."""
    batch = RunDir(run).recipe().global_batch
    found = [verify(folder) for folder in checkpoint_folders(run / "checkpoints")]
    return {checkpoint.samples_seen // batch: checkpoint for checkpoint in found}


def _told(checkpoint: Checkpoint) -> tuple[str, float]:
    """Returns the hash of the samples seen so far, and the next learning rate."""
    return checkpoint.metadata["sample_hash"], checkpoint.metadata["next_lr"]


def _hashes(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Returns all that must be the same in two runs."""
    return (*_told(checkpoint), checkpoint.files)


def _row(checkpoint: Checkpoint | None) -> str:
    """Returns what a run saved, in a row."""
    if checkpoint is None:
        return "nothing"
    samples, rate = _told(checkpoint)
    weights = checkpoint.files[checkpoint.weights.name]["sha256"]
    return f"{samples}  {rate:>14.10f}  {weights[:12]}"
