"""Pictures that are files of their own instead of members of shards: test sets as handed out.

The same stages as for shards follow, so that a picture counts alike from either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import webdataset as wds
from torch.utils.data import get_worker_info

from imagenet_rn50.loading.loader import Loader
from imagenet_rn50.loading.reader import SampleError
from imagenet_rn50.loading.stages import Sample, Share, StackBatches, TransformPicture
from imagenet_rn50.loading.transforms import Transform
from imagenet_rn50.shards.images import BadPictureError, repair
from imagenet_rn50.shards.options import PackOptions
from imagenet_rn50.shards.sources.base import Picture

_OPTIONS = PackOptions(restart_blocks=None)


def read_picture(root: Path, picture: Picture) -> bytes:
    """Returns a picture as RGB or gray JPEG, repaired as packing does where it is damaged.

    Its EXIF orientation stays: transforms turn the pixels, which turning the JPEG might change.

    Args:
        root: The folder that its path begins in.
        picture: A whole file.

    Raises:
        SampleError: When it cannot be read or decoded.
    """
    path = root / picture.path
    try:
        return repair(path.read_bytes(), _OPTIONS).jpeg
    except (OSError, BadPictureError) as error:
        raise SampleError(f"the picture {path} cannot be used", found=str(error)) from None


@dataclass(frozen=True)
class FileSource:
    """Source stage: yields this worker's pictures in order, as `stages.SampleSource` does.

    Args:
        root: The folder that paths begin in.
        pictures: What is at each position.
        share: Which positions are this rank's.
    """

    root: Path
    pictures: Sequence[Picture]
    share: Share

    def __call__(self) -> Iterator[Sample]:
        """Yields samples, batch after batch."""
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for start in self.share.starts[number::num_workers]:
            rows = self.share.count_at(start)
            for row, picture in enumerate(self.pictures[start : start + rows]):
                yield {
                    "__key__": picture.key,
                    "jpg": read_picture(self.root, picture),
                    "cls": picture.label,
                    "epoch": 0,
                    "index": start + row,
                    "place": f"the picture {self.root / picture.path}",
                    "row": row,
                    "rows": rows,
                }


def make_file_loader(
    root: Path,
    pictures: Sequence[Picture],
    share: Share,
    transform: Transform,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Makes the loader of one rank over files; see `loader.make_loader`."""
    pipeline = wds.DataPipeline(
        FileSource(root, pictures, share), TransformPicture(transform), StackBatches()
    )
    return Loader(pipeline, num_workers=num_workers, pin_memory=pin_memory)
