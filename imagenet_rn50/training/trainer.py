"""The training loop. Start reading here, from top to bottom.

`Trainer` builds everything (`__init__`), then `train` alternates `train_step`, `log`, `validate`
and `save` until the run is finished or is told to stop. Where each part lives:

    state.py         TrainState: all that training changes and a checkpoint restores
    checkpointer.py  writes checkpoints in the background
    resume.py        finds the checkpoint to resume from, and refuses one of another run
    preemption.py    signals and spot notices
    rank_flags.py    the agreement of all ranks to stop or save
    time_limit.py    when to stop so that the run is saved before its time is over

Departures from the usual Accelerate loop have their reason at the line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from imagenet_rn50.classes import Classes
from imagenet_rn50.data.dataset import OnCorrupt
from imagenet_rn50.data.loader import DeviceBatch, Loader, build_loader, on_device
from imagenet_rn50.data.reader import SampleError
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import TrainTransform
from imagenet_rn50.evaluation.evaluate import validate_batches, validation_loader
from imagenet_rn50.evaluation.metrics import Accuracy
from imagenet_rn50.learning_rate import Plateau, learning_rate
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.peaks import peak_tflops
from imagenet_rn50.pretrained import Kind
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoint import SCORE, checkpoint_folders, newest_checkpoint, verify
from imagenet_rn50.runs.metrics import MetricsLogger
from imagenet_rn50.runs.plots import draw_plots, write_logs
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.runs.sync import AsyncUploader
from imagenet_rn50.runs.verdict import verdict
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.training.accelerator import device_name, system_info
from imagenet_rn50.training.batch_norm import RunningStatistics
from imagenet_rn50.training.checkpointer import AsyncCheckpointer
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.init_weights import init_from_pretrained
from imagenet_rn50.training.losses import mix, smooth_targets, training_loss
from imagenet_rn50.training.meters import Cost, Meter, format_postfix
from imagenet_rn50.training.optim import Ema, build_optimizer, set_learning_rate
from imagenet_rn50.training.preemption import (
    EXIT_INTERRUPTED,
    SignalHandler,
    StopTraining,
    is_spot_watched,
    watch_spot_notice,
)
from imagenet_rn50.training.profiler import StepProfiler
from imagenet_rn50.training.progress import Progress, require_global_batch
from imagenet_rn50.training.rank_flags import RankFlags
from imagenet_rn50.training.resume import (
    ResumePoint,
    RunSpec,
    download_run,
    find_resume_point,
    on_main_process,
)
from imagenet_rn50.training.schedules import schedule_warnings
from imagenet_rn50.training.state import TrainState, checkpoint_bytes
from imagenet_rn50.training.time_limit import STOP_AT, TimeLimit, find_deadline
from imagenet_rn50.training.trackers import end_training, init_trackers, log_to_trackers
from imagenet_rn50.utilisation import training_flops
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import require_free_space
from imagenet_rn50.utils.formatting import counted, percent
from imagenet_rn50.utils.logging import log_startup, logger, progress_bar
from imagenet_rn50.utils.signals import kill_launcher, launch_command

_STEPS_PER_LOG_LINE = 20  # reading the loss waits for the device, so not after every step
_EXTRA_CHECKPOINTS = 2  # on disk besides the newest: the best, and the one being written
_STOP_AT_STEP = "--stop-at-step"


class Trainer:
    """Trains one recipe over one set of shards into one run directory.

    Args:
        recipe: Hyperparameters.
        shards: Where the shards are.
        run: Run directory: new, or one of the same recipe and shards.
        accelerator: From `make_accelerator`.
        num_workers: Loader processes of each rank.
        config: How the run is checkpointed, resumed and stopped.
        on_corrupt: What a damaged sample does: stop the run, or be substituted by another one.
        init_from: Pretrained weights to start a new run from, as `read_pretrained` takes them.
        init_weights: Averaged or raw weights, where that file holds both.
        profile: Number of steps to profile, after a warm-up; None profiles none.
        trackio_space: Space on the Hub, owner/name, that Trackio syncs the run's dashboard to.
        create: Whether to create the run directory, or resume from it. The learning rate finder
            does neither.

    Attributes:
        state: All that training changes.
        run: The run directory.
        meter: Loss, speed and data wait since the last log line.

    Raises:
        InputError: If recipe, shards and run directory do not fit; nothing is written before that.
    """

    def __init__(
        self,
        recipe: Recipe,
        shards: ShardStore,
        run: Path,
        accelerator: Accelerator,
        num_workers: int = 0,
        *,
        config: CheckpointConfig | None = None,
        on_corrupt: OnCorrupt = "stop",
        init_from: str | None = None,
        init_weights: Kind | None = None,
        profile: int | None = None,
        trackio_space: str | None = None,
        create: bool = True,
    ) -> None:
        self.recipe, self.shards, self.run = recipe, shards, RunDir(run)
        self.accelerator, self.num_workers, self.on_corrupt = accelerator, num_workers, on_corrupt
        self.profile, self.trackio_space = profile, trackio_space
        self.config = config or CheckpointConfig()
        self.config.check()
        self.manifest, self.classes = Manifest.load(shards.folder), Classes.load(shards.folder)
        self.train_split = self.manifest.split(TRAIN)
        self.validation_split = self.manifest.split(VALIDATION)
        self.fingerprint = Manifest.fingerprint_of(shards.folder)
        require_global_batch(recipe, self.train_split.num_samples, accelerator.num_processes)

        if create:
            download_run(accelerator, self.run, recipe, shards.folder, self.config)
        self.run.check(recipe, shards.folder, self.config.allow_change)
        self.resume_point = self._find_resume_point() if create else ResumePoint()
        self._build(init_from, init_weights)
        if self.resume_point.checkpoint:
            self._load(self.resume_point.checkpoint.folder)
        self.time_limit = self._make_time_limit() if create else None
        if create and accelerator.is_main_process:
            self._create_run()
        accelerator.wait_for_everyone()

    # ---------------------------------------------------------------- build

    def _find_resume_point(self) -> ResumePoint:
        spec = RunSpec(
            self.recipe,
            {"dataset": self.manifest.dataset, "fingerprint": self.fingerprint},
            self.train_split.num_samples,
            self.accelerator.mixed_precision,
        )
        return find_resume_point(self.accelerator, self.run.checkpoints, self.config, spec)

    def _build(self, init_from: str | None, init_weights: Kind | None) -> None:
        """Build the model and all else that training changes, on this rank's device."""
        recipe, accelerator = self.recipe, self.accelerator
        torch.backends.cudnn.benchmark = True  # few input sizes, each often
        torch.manual_seed(recipe.seed)  # every rank initialises the same weights
        model: nn.Module = build_model(recipe.model, self.classes)
        self.init_info: dict[str, Any] = {}
        if init_from and self.resume_point.checkpoint:
            folder = self.resume_point.checkpoint.folder
            accelerator.print(f"resuming with the weights of {folder}: --init-from is not used")
        elif init_from:
            self.init_info = init_from_pretrained(
                model, init_from, recipe, accelerator, init_weights
            )
        model.to(memory_format=torch.channels_last)

        # The recipe fixes the micro batch, hence accumulation depends on the number of ranks. Our
        # own loop rather than accelerator.accumulate, which would count batches across epochs.
        self.accumulation = recipe.accumulation(accelerator.num_processes)
        self.batch_norm = RunningStatistics(model, self.accumulation, accelerator.num_processes)
        fused = accelerator.device.type == "cuda" and accelerator.scaler is None
        optimizer = build_optimizer(model, recipe.optimizer, fused=fused)
        # No scheduler to prepare: the learning rate is a function of progress, and a prepared
        # scheduler would step once per rank.
        self.model, optimizer = accelerator.prepare(model, optimizer)
        self.state = TrainState(
            model=model,
            optimizer=optimizer,
            scaler=accelerator.scaler,
            ema=Ema(model, recipe.ema_decay) if recipe.ema_decay else None,
            plateau=Plateau(recipe),
            progress=Progress.of(recipe, self.train_split.num_samples),
        )
        self.state.register_hooks(accelerator)
        self.meter = Meter(accelerator.device, accelerator.num_processes)
        self.signals = SignalHandler(verbose=accelerator.is_main_process)
        self.flags = RankFlags(accelerator.num_processes)
        self.save_requested = False
        self.validation_seconds = 0.0  # of the last one in this process

    def _load(self, folder: Path) -> None:
        """Load a checkpoint on this rank.

        Raises:
            InputError: If it is damaged, or of another model.
        """
        log_startup(f"verifying and loading {folder}")
        verify(folder)  # on every rank: no file is interpreted before its hash is verified
        try:
            self.accelerator.load_state(str(folder))
        except Exception as error:  # safetensors, torch and pickle each raise their own type
            raise InputError(
                f"{folder} cannot be loaded into this model", found=f"{error}".partition("\n")[0]
            ) from error
        self.meter.sample_hash = self.state.sample_hash

    def _make_time_limit(self) -> TimeLimit | None:
        """Return the time limit of this process, if there is one, on the rank that watches it.

        Raises:
            InputError: If it is over, or leaves no time to train; on every rank.
        """
        if self._nothing_to_train():
            return None

        def make() -> TimeLimit | None:
            deadline = find_deadline(self.config.max_hours, self.config.stop_at)
            num_bytes = checkpoint_bytes(self.state.model, self.recipe)
            num_writes = 2 if self.config.sync else 1
            return TimeLimit(deadline, num_bytes * num_writes) if deadline else None

        limit = on_main_process(self.accelerator, make)
        return limit if self.accelerator.is_main_process else None

    def _create_run(self) -> None:
        """Create the run directory, if there is room for its checkpoints."""
        num_kept = self.config.keep_last + _EXTRA_CHECKPOINTS
        num_to_write = max(num_kept - len(checkpoint_folders(self.run.checkpoints)), 1)
        num_bytes = num_to_write * checkpoint_bytes(self.state.model, self.recipe)
        require_free_space(self.run.path, num_bytes, "checkpoints")
        self.run.create(self.recipe, self.shards.folder, self.manifest.dataset, self.classes)

    def train_loader(self, start: int, stop: int) -> Loader:
        """Return this rank's micro batches, from position `start` of the stream to `stop`.

        The loader shards itself. It must not go through `Accelerator.prepare`, which would shard it
        a second time and silently drop half of the data.
        """
        recipe, accelerator = self.recipe, self.accelerator
        batch_sampler = DistributedBatchSampler(
            start=start,
            stop=stop,
            batch=recipe.micro_batch,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        sampler = ShardShuffleSampler(
            self.train_split.shard_sizes, seed=recipe.seed, window=recipe.data.shuffle_window
        )
        return build_loader(
            self.shards,
            self.train_split,
            batch_sampler,
            TrainTransform(recipe.data, recipe.seed),
            order=sampler,
            num_workers=self.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            on_corrupt=self.on_corrupt,
        )

    def to_device(self, loader: Loader) -> Iterator[DeviceBatch]:
        """Yield a training loader's batches on this rank's device, normalised.

        Raises:
            SampleError: If a sample is damaged; it names the option to train without it.
        """
        data = self.recipe.data
        try:
            yield from on_device(loader, self.accelerator.device, data.mean, data.std)
        except SampleError as error:
            raise SampleError(
                f"{error}\n{'':11} or continue with --on-corrupt substitute"
            ) from None

    # ---------------------------------------------------------------- train

    def train(self) -> None:
        """Train until the recipe's epochs are done, or until told to save and stop.

        Raises:
            InputError: If the loss is no longer finite, or a sample is damaged.
            RuntimeError: If the last checkpoint could not be saved.
            SystemExit: After saving: with code `EXIT_INTERRUPTED` if told to stop, with code 0 at
                --stop-at-step.
        """
        state, accelerator = self.state, self.accelerator
        is_main = accelerator.is_main_process
        self.uploader = AsyncUploader(self.run, self.config.sync, enabled=is_main)
        if reason := self._nothing_to_train():
            self._finish_untrained(reason)
            return
        self._init_logging()
        self.began_with = state.key
        watches = accelerator.is_local_main_process and is_spot_watched(self.config.spot)
        with ExitStack() as stack:
            stack.enter_context(self._plots_on_failure())
            stack.enter_context(self.signals)
            stack.enter_context(watch_spot_notice(self.signals.request, enabled=watches))
            stack.enter_context(closing(self.flags))
            self.checkpointer = stack.enter_context(closing(self._make_checkpointer()))
            progress = state.progress
            self.loader = self.train_loader(progress.samples_seen, progress.total_samples)
            stack.enter_context(closing(self.loader))
            self.validation_loader = stack.enter_context(closing(self._make_validation_loader()))
            batches = self.to_device(self.loader)
            log_startup(
                f"starting {counted(self.num_workers, 'loader worker')} for the first batch"
            )
            self.bar = stack.enter_context(
                progress_bar(
                    total=progress.total_samples,
                    initial=progress.samples_seen,
                    description="train",
                    enabled=is_main,
                )
            )
            profiler = StepProfiler(
                self.run.path / "profile",
                self.profile,
                accelerator.device,
                accelerator.process_index,
            )
            stack.enter_context(closing(profiler))
            try:
                while state.evaluation_due or not state.progress.finished:
                    # Once an epoch, maybe one that an earlier process trained: validate and save.
                    if state.evaluation_due:
                        self.sync_requests(ahead=self.validation_seconds)
                        score = self.validate()
                        state.evaluation_due = False
                        self.save(score)
                        self.meter.reset()
                        continue

                    progress = state.progress
                    lr = learning_rate(self.recipe, progress.epoch, state.plateau.num_cuts)
                    with profiler.step(progress.step + 1):
                        self.train_step(batches, lr, position=progress.samples_seen)
                    state.progress = progress.after_step()
                    state.evaluation_due = progress.next_epoch_end == state.progress.samples_seen
                    self.bar.update(self.recipe.global_batch)
                    self.sync_requests(save=self.checkpointer.is_due())
                    save_due = self.save_requested or self.config.saves_after(state.progress.step)
                    if state.progress.step == self.config.stop_at_step:
                        raise StopTraining

                    # Once in a while: log and save.
                    is_log_step = self.meter.num_steps == _STEPS_PER_LOG_LINE
                    if is_log_step or state.evaluation_due or save_due:
                        self.log()
                    if save_due and not state.evaluation_due:
                        self.save()
            except StopTraining:
                self.log()
                self.save()
                self._stop()
            is_saved = self.checkpointer.wait()
        self._finish(is_saved=is_saved)

    def train_step(self, batches: Iterator[DeviceBatch], lr: float, *, position: int) -> None:
        """Take one optimizer step over one global batch.

        Args:
            batches: This rank's micro batches.
            lr: Learning rate.
            position: Where the global batch begins in the training stream, in samples.

        Raises:
            StopTraining: On all ranks between the same micro batches, if any was told to stop. The
                unfinished step is discarded, and all is as it was before it.
        """
        recipe, accelerator, state = self.recipe, self.accelerator, self.state
        try:
            losses = self._accumulate_gradients(batches, position)
        except StopTraining:
            self.batch_norm.abandon_step()
            state.optimizer.zero_grad()
            raise
        set_learning_rate(state.optimizer, lr)
        if recipe.optimizer.clip_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip_norm)
        state.optimizer.step()
        skipped = bool(state.optimizer.step_was_skipped)  # fp16 overflow: the scaler backs off
        state.optimizer.zero_grad()
        self.batch_norm.after_step(self.all_reduce_sum)
        if state.ema and not skipped:
            state.ema.update(state.model)
        self.meter.after_step(losses, recipe.global_batch, skipped=skipped)

    def _accumulate_gradients(self, batches: Iterator[DeviceBatch], position: int) -> list[Tensor]:
        """Run this rank's micro batches of one step forward and backward; return their losses."""
        recipe, accelerator = self.recipe, self.accelerator
        losses = []
        for micro_step in range(self.accumulation):
            if micro_step:
                self.sync_requests()  # a step may take minutes on a CPU
            with self.meter.waiting():
                batch = next(batches)
            rank_position = position + recipe.micro_batch * (
                micro_step * accelerator.num_processes + accelerator.process_index
            )
            self.batch_norm.before_micro_batch(micro_step)
            # Gradients are reduced over ranks once a step, with the last micro batch.
            is_last = micro_step == self.accumulation - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                self.meter.update_hash(rank_position, batch.host.indices)
                self.meter.add_flops(self._flops(batch.images))
                loss = self.loss(batch, rank_position)
                accelerator.backward(loss / self.accumulation)
            losses.append(loss.detach())
        return losses

    def _flops(self, images: Tensor) -> int:
        """Return the FLOPs of a step on some images, at their size: (B, 3, H, W)."""
        num_images, *_, side = images.shape
        return num_images * training_flops(self.recipe.model, side, len(self.classes))

    def loss(self, batch: DeviceBatch, position: int) -> Tensor:
        """Return the mean loss of a micro batch, a scalar; `position` seeds its mixing."""
        recipe = self.recipe
        images, targets = batch.images, batch.labels  # (B, 3, H, W) float32, (B,) int64
        if recipe.mixup_alpha or recipe.cutmix_alpha:
            soft = smooth_targets(targets, len(self.classes), recipe.label_smoothing)  # (B, C)
            images, targets = mix(images, soft, recipe, position)
        return training_loss(logits_of(self.model, images), targets, recipe)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def sync_requests(self, *, save: bool = False, ahead: float = 0.0) -> None:
        """Exchange the requests of all ranks; every rank calls it equally often.

        An asynchronous exchange between the hosts, which is read at the next call. Accelerate's
        `check_trigger` would reduce a tensor on the device, and wait for it, at every step.

        Args:
            save: Whether this rank asks for a checkpoint. It is saved after a whole step.
            ahead: Time that is lost if the run has to stop before it is over, s.

        Raises:
            StopTraining: On all ranks at the same call, if any was told to stop.
        """
        if self.time_limit and self.time_limit.is_reached(self._save_seconds(), ahead):
            self.signals.request(self.time_limit.reason)
        requests = self.flags.exchange(stop=self.signals.is_requested, save=save)
        if requests.stop:
            raise StopTraining
        self.save_requested |= requests.save

    # ---------------------------------------------------------------- validate

    def validate(self) -> float:
        """Validate raw and averaged weights, update the plateau rule, log; all ranks call it.

        Returns:
            The score that selects the best checkpoint, in [0, 1].

        Raises:
            InputError: If the loss is not finite; nothing is logged then.
            StopTraining: If any rank is told to stop meanwhile; nothing is logged then.
        """
        state, epoch = self.state, self.state.progress.epoch
        began = time.perf_counter()
        accuracy = self._accuracy(state.model)
        self._require_finite(accuracy.loss, f"in validation, after epoch {epoch:.2f}")
        record: dict[str, Any] = accuracy.as_dict()
        message = f"epoch {epoch:.2f}: {accuracy.describe(len(self.classes))}"
        if state.ema:
            averaged = self._accuracy(state.ema.model)
            record |= {f"ema_{key}": value for key, value in averaged.as_dict().items()}
            message += f"; averaged weights: top-1 {percent(averaged.top1)}"
        score = metrics.score(record)
        is_best = score > self.logger.best_score()
        seconds = self.validation_seconds = time.perf_counter() - began
        lr_was_cut = state.plateau.after_validation(epoch, accuracy.loss)
        written = self._write(metrics.VALIDATION, **record, seconds=seconds, is_best=is_best)
        values = {f"validation/{key}": value for key, value in record.items()}
        log_to_trackers(self.accelerator, values, state.progress.samples_seen)

        message += ", the best so far" * is_best
        if "cost_usd" in written:
            message += f"; {written['cost_usd']:.2f} USD spent"
        if "cost_left_usd" in written:
            message += f", about {written['cost_left_usd']:.2f} to come"
        self._say(message)
        if lr_was_cut and not state.progress.finished:  # a last cut changes nothing
            patience = self.recipe.schedule.plateau_patience or 0
            waited = counted(patience + 1, "evaluation")
            lr = learning_rate(self.recipe, epoch, state.plateau.num_cuts)
            self._say(
                f"the validation loss has not fallen for {waited}: the learning rate is "
                f"cut to {lr:.3g}"
            )
        if self.accelerator.is_main_process:
            with self.logger.warn_on_oserror("logs.md"):
                write_logs(self.run.path)
        return score

    def _accuracy(self, model: nn.Module) -> Accuracy:
        """Evaluate one set of weights on all ranks together; each image counts once."""
        accelerator, batch = self.accelerator, self.recipe.micro_batch
        # Ranks differ by one batch; requests are exchanged after those that all ranks have.
        num_batches = -(-self.validation_split.num_samples // batch)
        exchanges = iter(range(num_batches // accelerator.num_processes))

        def on_batch(*_: object) -> None:
            if next(exchanges, None) is not None:
                self.sync_requests()

        return validate_batches(
            model,
            self.validation_loader,
            self.recipe.data,
            self.validation_split.num_samples,
            device=accelerator.device,
            reduce=self.all_reduce_sum,
            on_batch=on_batch,
        )

    def _make_validation_loader(self) -> Loader:
        """Return this rank's share of the validation split; its workers start with its first pass.

        They are kept from epoch to epoch: where processes are not forked, starting them costs as
        much as starting Python and importing torch.
        """
        accelerator = self.accelerator
        return validation_loader(
            self.shards,
            self.validation_split,
            self.recipe.data,
            device=accelerator.device,
            batch=self.recipe.micro_batch,
            num_workers=self.num_workers,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )

    # ---------------------------------------------------------------- log and save

    def _init_logging(self) -> None:
        """Start the trackers and metrics.jsonl; all ranks call it."""
        recipe, accelerator, state = self.recipe, self.accelerator, self.state
        for warning in schedule_warnings(recipe, self.train_split.num_samples):
            self._say(f"warning: {warning}")
        if names := ", ".join(map(str, accelerator.log_with)):
            log_startup(f"starting the trackers: {names}")
        init_trackers(accelerator, recipe, self.run.path, self.trackio_space)
        self.logger = MetricsLogger(
            self.run.path,
            state.progress.samples_seen,
            evaluation_due=state.evaluation_due,
            cost=Cost(self.run, self.config.price_per_hour, state.progress).metrics,
            enabled=accelerator.is_main_process,
        )
        self.peak_tflops = self._mean_peak()
        self._write(
            metrics.START,
            **system_info(accelerator),
            **self.resume_point.as_dict(),
            **self.init_info,
            **self._dashboard(),
        )
        if self.time_limit:
            self._say(self.time_limit.describe())

    def _dashboard(self) -> dict[str, str]:
        """Return the Space with the run's dashboard, if Trackio has started to sync to one."""
        is_synced = any(tracker.name == "trackio" for tracker in self.accelerator.trackers)
        return {"trackio_space": self.trackio_space} if self.trackio_space and is_synced else {}

    def _mean_peak(self) -> float | None:
        """Return the mean peak of all ranks' devices, TFLOP/s; None if one is unknown."""
        device = self.accelerator.device
        peak = peak_tflops(device_name(device), self.accelerator.mixed_precision)
        total = self.all_reduce_sum(torch.tensor(peak or math.nan, device=device)).item()
        return None if math.isnan(total) else total / self.accelerator.num_processes

    def log(self) -> None:
        """Log the metrics since the last log line; all ranks call it.

        Raises:
            InputError: If the loss is no longer finite.
        """
        self.checkpointer.log_result()
        num_steps = self.meter.num_steps
        if not num_steps:
            return
        state = self.state
        record = self.meter.compute_and_reset(self.all_reduce_sum)
        state.sample_hash = self.meter.sample_hash
        if substitutions := self.loader.stats().substitutions:
            record["substitutions"] = substitutions
        last = state.progress.step
        self._require_finite(record["loss"], f"within steps [{last - num_steps + 1}, {last}]")
        if self.peak_tflops:
            record["mfu"] = record["tflops"] / self.peak_tflops
        lr = state.optimizer.param_groups[0]["lr"]
        self._write(metrics.TRAIN, lr=lr, **record)
        values = {key: value for key, value in record.items() if not isinstance(value, str)}
        log_to_trackers(self.accelerator, values | {"lr": lr}, state.progress.samples_seen)
        self.bar.set_postfix_str(format_postfix(record, lr), refresh=False)

    def save(self, score: float | None = None) -> None:
        """Start to save a checkpoint in the background.

        Args:
            score: What validation has just said of this state, in [0, 1].
        """
        self.save_requested = False
        progress, num_cuts = self.state.progress, self.state.plateau.num_cuts
        metadata = {
            **({} if score is None else {SCORE: score}),
            "sample_hash": f"{self.state.sample_hash:016x}",
            "next_lr": learning_rate(self.recipe, progress.epoch, num_cuts),
            "recipe": self.recipe.model_dump(mode="json"),
            "shards": {"dataset": self.manifest.dataset, "fingerprint": self.fingerprint},
            "origin": self.resume_point.origin,
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **system_info(self.accelerator),
        }
        self.checkpointer.save(self.state, metadata)

    def _save_seconds(self) -> float | None:
        """Return how long the last save and its upload took; None if that is not known yet."""
        saving = self.checkpointer.last_seconds
        uploading = self.uploader.last_seconds if self.config.sync else 0.0
        return None if saving is None or uploading is None else saving + uploading

    def _make_checkpointer(self) -> AsyncCheckpointer:
        return AsyncCheckpointer(
            self.run,
            self.config,
            self.logger,
            self.uploader.upload,
            enabled=self.accelerator.is_main_process,
            saved=self.state,
        )

    def _write(self, kind: str, **values: Any) -> dict[str, Any]:
        """Write a line of metrics.jsonl about the present state; return it."""
        progress = self.state.progress
        return self.logger.write(kind, progress.samples_seen, progress.epoch, **values)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            logger.info(text)

    def _require_finite(self, loss: float, where: str) -> None:
        """Stop training if the loss diverged; all ranks call it with the same loss.

        Raises:
            InputError: If it is nan or inf.
        """
        if math.isfinite(loss):
            return
        newest = newest_checkpoint(self.run.checkpoints)
        raise InputError(
            f"the loss became nan or inf {where}; "
            f"the last good checkpoint is {newest.folder if newest else 'none'}",
            fix=f"{'resume from there' if newest else 'start again'} with a lower learning rate: "
            f"--optimizer.lr {self.recipe.optimizer.lr / 2:g} --allow-change optimizer.lr",
        )

    # ---------------------------------------------------------------- stop

    def _nothing_to_train(self) -> str | None:
        """Return why there is nothing to train, if that is so."""
        progress, stop = self.state.progress, self.config.stop_at_step
        if progress.finished and not self.state.evaluation_due:
            return f"{self.run.path} is finished: {self.recipe.epochs} epochs. Nothing to train."
        if stop is not None and progress.step >= stop:
            command = launch_command(without=_STOP_AT_STEP)
            return (
                f"{self.run.path} is at step {progress.step}, and {_STOP_AT_STEP} is {stop}. "
                f"Nothing to train. To continue:\n  {command}"
            )
        return None

    def _finish_untrained(self, reason: str) -> None:
        """Leave the run as it is, except for what an earlier process did not get to."""
        self.accelerator.print(reason)
        run = self.run.path
        is_to_draw = (run / metrics.FILE_NAME).is_file() and not (run / "plots").is_dir()
        if self.accelerator.is_main_process and is_to_draw:
            draw_plots(run)
        self.uploader.finish()

    @contextmanager
    def _plots_on_failure(self) -> Iterator[None]:
        """Close metrics.jsonl and draw it if the body fails: users want to see why."""
        try:
            yield
        except Exception:
            self.logger.close()
            if self.accelerator.is_main_process:
                with suppress(Exception):  # the first error is the one to show
                    draw_plots(self.run.path)
            raise

    def _close_logs(self) -> None:
        """Close metrics.jsonl and draw the plots, on the rank that logs."""
        self.logger.close()
        if self.accelerator.is_main_process:
            with self.logger.warn_on_oserror("plots"):
                draw_plots(self.run.path)

    def _finish(self, *, is_saved: bool) -> None:
        """End a finished run; all ranks call it.

        Raises:
            RuntimeError: If the last checkpoint could not be saved.
        """
        self._close_logs()
        if not is_saved:
            newest = newest_checkpoint(self.run.checkpoints)
            kept = f"the newest is {newest.folder.name}" if newest else "there is none"
            raise RuntimeError(f"the last checkpoint could not be saved; {kept}")
        self.uploader.finish()
        if self.accelerator.is_main_process:
            logger.info(verdict(self.run.path, self.recipe))
        self._end()

    def _stop(self) -> NoReturn:
        """End this process after the pending save, and say how to resume; all ranks call it.

        Raises:
            InputError: If a time limit was over before anything was done; resuming would repeat it.
            SystemExit: Otherwise.
        """
        step = self.state.progress.step
        is_planned = step == self.config.stop_at_step
        limit = self.time_limit
        if limit and limit.reason != self.signals.reason:
            limit = None
        is_saved = self.checkpointer.wait()
        if limit and self.state.key == self.began_with:
            self._end()
            raise limit.too_short("no step and no validation was finished in it")
        default = f"{_STOP_AT_STEP} {step}" if is_planned else "a signal to another rank"
        reason = self.signals.reason or default
        self._write(metrics.STOP, reason=reason, saved=is_saved)
        self._close_logs()
        self.uploader.finish()
        what = "saved and stopped"
        if not is_saved:
            newest = newest_checkpoint(self.run.checkpoints)
            kept = f"the newest checkpoint is {newest.folder.name}" if newest else "no checkpoint"
            what = f"stopped; saving failed, {kept}:"
        is_spent = limit is not None and limit.is_spent
        without = _STOP_AT_STEP if is_planned else STOP_AT if is_spent else None
        command = launch_command(without)
        self._say(f"{what} after step {step} ({reason}). To resume:\n  {command}")
        self._end()
        if self.signals.is_interrupt and self.accelerator.is_local_main_process:
            kill_launcher()
        raise SystemExit(0 if is_planned and is_saved else EXIT_INTERRUPTED)

    def _end(self) -> None:
        """Wait for all ranks, and end the trackers."""
        self.accelerator.wait_for_everyone()  # torchelastic kills the others when one rank exits
        end_training(self.accelerator)
