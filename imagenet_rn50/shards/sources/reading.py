"""Read the bytes of a shard's images from wherever they stand."""

from __future__ import annotations

import os
from collections.abc import Iterator

from imagenet_rn50.shards.plan import ShardTask
from imagenet_rn50.shards.sources.base import SourceImage, readable
from imagenet_rn50.utils.errors import InputError


def read_images(task: ShardTask) -> Iterator[tuple[SourceImage, bytes]]:
    """Yield the task's images and their bytes, in the task's order.

    Raises:
        InputError: When a file has vanished or changed its size since it was listed.
    """
    if task.spool is not None:
        for image, (offset, length) in zip(task.images, task.places, strict=True):
            yield image, _read_stretch(task.spool, offset, length)
        return
    for image in task.images:
        # A `Path` an image would take longer than opening the file.
        path = f"{task.root}/{image.path}"
        yield image, _read_stretch(path, image.offset, image.length)


def _read_stretch(path: str, offset: int, length: int) -> bytes:
    """Read a whole file, or a stretch of a tar or of a temporary file."""
    try:
        # Unbuffered and by descriptor: a fraction of the time that `open` takes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        content = None
    except OSError as error:
        raise InputError(f"{readable(path)} cannot be read", found=error.strerror) from None
    if content is None or len(content) != length:
        raise InputError(
            f"the source changed while it was read: {path}",
            expected=f"{length} bytes at offset {offset}",
            found="no such file" if content is None else f"{len(content)} bytes",
        )
    return content
