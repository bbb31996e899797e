"""From shards to batches: sampler, dataset, transforms, loader, cache.

To use the loader alone, import from here; docs/loading.md shows how:

    from imagenet_rn50.data import make_loader

The names are imported when they are first used, because they need torch and
`imagenet_rn50.data.sampler` does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagenet_rn50.data.dataset import Batch
    from imagenet_rn50.data.loader import Loader, LoaderStats, make_loader, on_device
    from imagenet_rn50.data.transforms import (
        EvalTransform,
        TrainTransform,
        Transform,
        normalise,
    )

__all__ = [
    "Batch",
    "EvalTransform",
    "Loader",
    "LoaderStats",
    "TrainTransform",
    "Transform",
    "make_loader",
    "normalise",
    "on_device",
]

_MODULES = {
    "dataset": {"Batch"},
    "loader": {"Loader", "LoaderStats", "make_loader", "on_device"},
    "transforms": {"EvalTransform", "TrainTransform", "Transform", "normalise"},
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
