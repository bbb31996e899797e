"""Make the shards of a plan in several processes, and keep what an interrupted run can resume.

    SHARDS/.packing/
      lock                          held while a process packs into SHARDS
      plan.json                     identity of source and options
      imagenet1k-train-0000.tar.json    what the finished shard holds, with its hash
      imagenet1k-train-0001.tar.spool   images of a shard that is to be made, where it needs one

The folder is deleted when the manifest is written.

Parquet files and remote files are read once, front to back, and their images spooled to one
temporary file per shard: every shard has images from almost every row group or remote shard, so
reading shard by shard would read all files over and over. A temporary file is deleted when its
shard is finished, so together they never take more space than the shards.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from imagenet_rn50.shards.imagenet1k import is_name
from imagenet_rn50.shards.images import BadImageError, Prepared, prepare
from imagenet_rn50.shards.manifest import Shard
from imagenet_rn50.shards.plan import ShardTask
from imagenet_rn50.shards.sources.base import ImageReader, SourceImage, readable
from imagenet_rn50.shards.sources.reading import read_images
from imagenet_rn50.shards.tar import TarWriter
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import (
    TEMPORARY_SUFFIX,
    atomic_file,
    lock_or_raise,
    make_folder,
    read_json,
    sha256_of_file,
    write_json,
    write_text,
)
from imagenet_rn50.utils.logging import progress_bar
from imagenet_rn50.utils.private_apis import terminate_workers
from imagenet_rn50.utils.signals import block_signals_in_children

FOLDER = ".packing"


class PackingState:
    """The `.packing` folder of an output folder.

    Args:
        out: The folder that gets the shards.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = out / FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other packing processes.

        Raises:
            InputError: When one does, or the folder cannot be written.
        """
        make_folder(self._folder, fix="give another --out")
        refusal = InputError(
            f"another process is packing into {self._out}", fix="wait for it, or give another --out"
        )
        with lock_or_raise(self._folder / "lock", refusal):
            yield

    def adopt(self, identity: dict[str, Any]) -> None:
        """Start packing, or resume an interrupted run.

        Args:
            identity: Source and options; what decides the bytes.

        Raises:
            InputError: When the folder holds an unfinished packing with other options.
        """
        path = self._folder / "plan.json"
        if path.exists() and (begun := read_json(path)) != identity:
            raise InputError(
                f"{self._out} holds an unfinished packing with other options",
                expected="the same source and options as before",
                found=describe_difference(begun, identity),
                fix=f"use the same options, or another --out, or delete {self._out}",
            )
        write_json(path, identity)

    def spread(self, tasks: Sequence[ShardTask], reader: ImageReader | None) -> list[ShardTask]:
        """Read sources that cannot be read shard by shard; see `spread`."""
        if not tasks or reader is None:
            return list(tasks)
        return spread(tasks, reader, self._folder)

    def remove_leftovers(self) -> None:
        """Delete half-written and temporary files of processes that were killed."""
        remove_all(self._folder)
        for folder in (self._out, self._folder):
            for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
                path.unlink(missing_ok=True)

    def save(self, record: ShardRecord) -> None:
        """Save the record of a finished shard and delete its temporary file."""
        record.save(self._record_path(record.shard.name))
        (self._folder / f"{record.shard.name}{SUFFIX}").unlink(missing_ok=True)

    def all_finished(self, tasks: Sequence[ShardTask]) -> dict[str, ShardRecord]:
        """Return the records of the shards that are there and whole, by the shard's name."""
        begun = [task for task in tasks if self._record_path(task.name).is_file()]
        found = {}
        with progress_bar(
            total=len(begun), description="checking", unit="shard", enabled=bool(begun)
        ) as bar:
            for task in begun:
                if (record := self._finished(task)) is not None:
                    found[task.name] = record
                bar.update()
        return found

    def _finished(self, task: ShardTask) -> ShardRecord | None:
        """Return the record of a shard that is there and whole; None when it has to be made."""
        path = self._out / task.name
        try:
            record = ShardRecord.load(self._record_path(task.name))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        shard = record.shard
        if not path.is_file() or path.stat().st_size != shard.num_bytes:
            return None
        if record.skipped and task.options.on_corrupt == "stop":
            return None  # made by a run that skipped corrupt images
        return record if sha256_of_file(path) == shard.sha256 else None

    def forget(self) -> None:
        """Remove the folder, when the manifest has taken its place."""
        shutil.rmtree(self._folder)

    def _record_path(self, shard_name: str) -> Path:
        return self._folder / f"{shard_name}.json"


def describe_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe the entries in which two identities differ."""
    differences = []
    for name in sorted(before.keys() | now.keys()):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict) and one != other:
            differences.append(f"{name}: {describe_difference(one, other)}")
        elif one != other:
            differences.append(f"{name} was {one!r}, now {other!r}")
    return ", ".join(differences)


SUFFIX = ".spool"


def spread(tasks: Sequence[ShardTask], reader: ImageReader, folder: Path) -> list[ShardTask]:
    """Read every file of the source once and append each image to its shard's file.

    Args:
        tasks: The shards to make.
        reader: Reads the source.
        folder: Folder of the temporary files.

    Returns:
        The same tasks, each with the places of its images in its temporary file.
    """
    remove_all(folder)
    # File -> (image, number of the task, number of the image in it), front to back.
    wanted: dict[str, list[tuple[SourceImage, int, int]]] = defaultdict(list)
    for number, task in enumerate(tasks):
        for position, image in enumerate(task.images):
            wanted[image.path].append((image, number, position))
    for rows in wanted.values():
        rows.sort(key=lambda row: row[0].offset)
    images = {path: [row[0] for row in rows] for path, rows in sorted(wanted.items())}
    places = [[(0, 0)] * len(task.images) for task in tasks]
    ends = [0] * len(tasks)
    total = sum(len(task.images) for task in tasks)
    with progress_bar(total=total, description="reading") as bar:
        for path, index, content in reader.read(images):
            _, number, position = wanted[path][index]
            _append(spool_path(folder, tasks[number]), content)
            places[number][position] = ends[number], len(content)
            ends[number] += len(content)
            bar.update()
    return [
        replace(task, spool=str(spool_path(folder, task)), places=tuple(found))
        for task, found in zip(tasks, places, strict=True)
    ]


def spool_path(folder: Path, task: ShardTask) -> Path:
    """Return the name of a shard's temporary file."""
    return folder / f"{task.name}{SUFFIX}"


def remove_all(folder: Path) -> None:
    """Remove the temporary files of a run that was cut short."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _append(path: Path, content: bytes) -> None:
    """Append to a file; a thousand files are too many to keep open."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        rest = memoryview(content)
        while rest:  # a nearly full disk takes less than it is given
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


# Called after each image with the number of bytes read.
Tick = Callable[[int], None]


class Row(NamedTuple):
    """One packed sample, as the manifest and the audit need it."""

    key: str
    label: int
    offset: int
    length: int
    crc32: int
    width: int
    height: int


class Note(NamedTuple):
    """An image that was changed or skipped, and why."""

    path: str
    key: str
    label: int
    reason: str


@dataclass
class ShardRecord:
    """What a finished shard holds.

    Args:
        split: `train` or `validation`.
        shard: Name, size and hash of the tar.
        rows: Its samples, in their order.
        changed: Images whose bytes were repaired or converted.
        skipped: Images that could not be used.
        converted: Number of images that were converted, by the format that they had.
        num_without_markers: Number of images that were too small for restart markers.
    """

    split: str
    shard: Shard
    rows: list[Row] = field(default_factory=list)
    changed: list[Note] = field(default_factory=list)
    skipped: list[Note] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)
    num_without_markers: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the record as `from_dict` takes it; JSON can hold it."""
        return {
            "split": self.split,
            "shard": asdict(self.shard),
            "rows": self.rows,
            "changed": self.changed,
            "skipped": self.skipped,
            "converted": self.converted,
            "num_without_markers": self.num_without_markers,
        }

    def save(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_text(path, json.dumps(self.as_dict()))

    @classmethod
    def load(cls, path: Path) -> ShardRecord:
        """Read a record that `save` wrote.

        Raises:
            ValueError, KeyError, TypeError, OSError: When it is missing or is something else.
        """
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ShardRecord:
        """Return the record that `as_dict` described.

        Raises:
            ValueError, KeyError, TypeError: When it is something else.
        """
        return cls(
            split=content["split"],
            shard=Shard(**content["shard"]),
            rows=[Row(*row) for row in content["rows"]],
            changed=[Note(*note) for note in content["changed"]],
            skipped=[Note(*note) for note in content["skipped"]],
            converted=content["converted"],
            num_without_markers=content["num_without_markers"],
        )


def make_shard(task: ShardTask, folder: Path, tick: Tick) -> ShardRecord:
    """Write one shard into `folder`, whole or not at all.

    Args:
        task: What goes into it.
        folder: Output folder.
        tick: Called after each image.

    Returns:
        What went in.

    Raises:
        InputError: When an image cannot be used and the options say to stop.
        OSError: When the disk is full, or the source cannot be read.
    """
    rows: list[Row] = []
    changed: list[Note] = []
    skipped: list[Note] = []
    converted: Counter[str] = Counter()
    num_without_markers = 0
    with atomic_file(folder / task.name) as file:
        tar = TarWriter(file)
        for image, raw in read_images(task):
            try:
                _require_undamaged(image, raw)
                prepared = prepare(raw, task.options)
            except BadImageError as error:
                skipped.append(_skip_or_stop(task, image, str(error)))
            else:
                rows.append(_add_sample(tar, task, image, prepared))
                num_without_markers += prepared.is_without_markers
                if prepared.converted_from is not None:
                    converted[prepared.converted_from] += 1
                changed += (
                    Note(readable(image.path), image.key, image.label, change)
                    for change in prepared.changes
                )
            tick(len(raw))
        sha256 = tar.close()
    shard = Shard(name=task.name, num_samples=len(rows), num_bytes=tar.num_bytes, sha256=sha256)
    return ShardRecord(
        task.split, shard, rows, changed, skipped, dict(converted), num_without_markers
    )


def _require_undamaged(image: SourceImage, raw: bytes) -> None:
    """Raise an error if the bytes of an image are not those that the source's manifest describes.

    Raises:
        BadImageError: When their CRC-32 differs.
    """
    if image.crc32 is not None and zlib.crc32(raw) != image.crc32:
        raise BadImageError(
            f"its bytes are damaged: CRC-32 {zlib.crc32(raw):08x} instead of {image.crc32:08x}, "
            "as the source's manifest has it"
        )


def _add_sample(tar: TarWriter, task: ShardTask, image: SourceImage, prepared: Prepared) -> Row:
    """Append the members of one sample."""
    offset = tar.add(f"{image.key}.jpg", prepared.jpeg)
    tar.add(f"{image.key}.cls", str(image.label).encode("ascii"))
    if task.options.metadata:
        facts = {
            "key": image.key,
            "label": image.label,
            "wnid": task.wnids[image.label],
            "width": prepared.width,
            "height": prepared.height,
            "source": readable(image.path),
            "changes": prepared.changes,
        }
        tar.add(f"{image.key}.json", json.dumps(facts, ensure_ascii=False).encode("utf-8"))
    return Row(
        key=image.key,
        label=image.label,
        offset=offset,
        length=len(prepared.jpeg),
        crc32=zlib.crc32(prepared.jpeg),
        width=prepared.width,
        height=prepared.height,
    )


def _skip_or_stop(task: ShardTask, image: SourceImage, reason: str) -> Note:
    """Return the note on a corrupt image, or stop the run."""
    name = str(task.options.dataset)
    if task.options.on_corrupt == "stop" or is_name(name):
        row = f" (row {image.offset})" if task.layout == "parquet" else ""
        fix = "replace the file, or skip such images: --on-corrupt skip"
        if task.layout == "shards":
            fix = "restore the shard, or skip such images: --on-corrupt skip"
        if task.options.on_corrupt == "skip":
            fix = f"replace the file, or give the data another name than {name}: --dataset"
        raise InputError(
            f"the image {readable(image.path)}{row} (key {image.key}) cannot be used",
            expected="an image that decodes whole",
            found=reason,
            fix=fix,
        )
    return Note(readable(image.path), image.key, image.label, reason)


_POLL_SECONDS = 0.2
_counts: Any = None  # in a worker: images and bytes done of each task, shared with the parent


def make_shards(
    tasks: Sequence[ShardTask], folder: Path, num_workers: int, bar: tqdm[Any]
) -> Iterator[ShardRecord]:
    """Make shards and yields the record of each as soon as it is finished.

    Args:
        tasks: The shards to make.
        folder: Output folder.
        num_workers: How many processes; 1 works in this one.
        bar: Counts images.

    Raises:
        InputError: When an image cannot be used and the options say to stop.
        OSError: When the disk is full, or the source cannot be read.
    """
    progress = _Progress(bar)
    num_workers = min(num_workers, len(tasks))
    if num_workers <= 1:
        for task in tasks:
            yield make_shard(task, folder, progress.add)
            progress.show()
    else:
        yield from _in_processes(tasks, folder, num_workers, progress)


class _Progress:
    """Show images and bytes per second in a progress bar."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar
        self._begin = self._shown = time.monotonic()
        self._counted = self.images = self.bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count one more image."""
        self.images += 1
        self.bytes += num_bytes
        if time.monotonic() - self._shown > _POLL_SECONDS:
            self.show()

    def show(self) -> None:
        """Update the bar."""
        self._shown = time.monotonic()
        rate = self.bytes / max(self._shown - self._begin, 1e-9)
        self._bar.set_postfix_str(f"{rate / 1e6:.1f} MB/s", refresh=False)
        self._bar.update(self.images - self._counted)
        self._counted = self.images


def _in_processes(
    tasks: Sequence[ShardTask], folder: Path, num_workers: int, progress: _Progress
) -> Iterator[ShardRecord]:
    """Make shards in worker processes; on an error they are stopped at once."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    # The server that forks the workers imports this once, instead of each worker for itself.
    context.set_forkserver_preload([__name__])
    # Without a lock, which a worker that is killed would never release: a task has one worker.
    counts = context.RawArray("q", 2 * len(tasks))
    executor = ProcessPoolExecutor(
        num_workers, context, initializer=_begin_worker, initargs=(counts,)
    )
    try:
        with block_signals_in_children(context):  # Ctrl-C is for this process to handle
            running: set[Future[ShardRecord]] = {
                executor.submit(_work, number, task, str(folder))
                for number, task in enumerate(tasks)
            }
        while running:
            done, running = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            progress.images, progress.bytes = sum(counts[::2]), sum(counts[1::2])
            progress.show()
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed from outside, perhaps because memory ran out",
            found=f"{num_workers} workers; finished shards are kept",
            fix="run the same command again with fewer --workers",
        ) from None
    except BaseException:
        terminate_workers(executor)
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker(counts: Any) -> None:
    """Prepare a worker process."""
    global _counts
    _counts = counts
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _leave(*_: object) -> None:
    """Exit a worker so that it removes its partial files."""
    raise SystemExit(1)


def _end_with(parent: int) -> None:
    """Exit when the parent process is gone, even if it was killed."""
    wait_for_any([parent])
    os._exit(1)


def _work(number: int, task: ShardTask, folder: str) -> ShardRecord:
    """Make one shard in a worker."""

    def count(num_bytes: int) -> None:
        _counts[2 * number] += 1
        _counts[2 * number + 1] += num_bytes

    try:
        return make_shard(task, Path(folder), count)
    except SystemExit:
        # The executor would catch it and take the next task.
        os._exit(1)
