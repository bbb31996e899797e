"""How long a run would take: arithmetic on a few rates, each with where it comes from.

An epoch's pace is that of the slowest of three: the volume (only in the first epoch, where the
shards fit into memory afterwards), the loader, the GPUs. What a convolution costs goes with the
number of pixels, so images/s of the GPUs go with 1 / side^2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from imagenet_rn50.machine.facts import KEPT_IN_MEMORY
from imagenet_rn50.recipe import Recipe

IMAGENET_TRAIN, IMAGENET_VALIDATION = 1_281_167, 50_000
_SECONDS = 3600
_FORWARD = 1 / 3  # of a training step: a backward pass costs twice a forward pass


@dataclass(frozen=True)
class Rates:
    """What one machine does, and what it reads.

    Attributes:
        gpus: images/s of training steps of all its GPUs at `size`.
        size: Side of the pictures at which that is, px.
        loader: images/s of all loader processes.
        volume: MiB/s of the volume of the shards.
        bytes_per_image: Bytes of a shard for each of its samples.
        memory_bytes: Memory of the machine.
        num_train: Training images.
        num_validation: Images of each evaluation.
    """

    gpus: float
    size: int
    loader: float
    volume: float
    bytes_per_image: float
    memory_bytes: float
    num_train: int
    num_validation: int

    def gpus_at(self, size: int) -> float:
        """Returns images/s of the GPUs for pictures of another size."""
        return self.gpus * (self.size / size) ** 2

    @property
    def images_from_volume(self) -> float:
        """images/s that the volume delivers."""
        return self.volume * 2**20 / self.bytes_per_image

    @property
    def fits_memory(self) -> bool:
        """Whether the shards are read from the volume once only."""
        return self.num_train * self.bytes_per_image <= KEPT_IN_MEMORY * self.memory_bytes


@dataclass(frozen=True)
class Duration:
    """How long a run would take.

    Attributes:
        hours: All of it.
        images_per_second: In training, over all epochs.
        limit: What held most of the hours up: volume, loader or devices.
    """

    hours: float
    images_per_second: float
    limit: str


def duration(recipe: Recipe, rates: Rates, num_nodes: int = 1) -> Duration:
    """Computes how long a run would take, without interruptions.

    Every node reads whole shards, for each has its share of every batch; so loaders and GPUs add
    up over nodes, and volumes do not.

    Args:
        recipe: What would run.
        rates: Of one node.
        num_nodes: How many alike take part.
    """
    held_up: defaultdict[str, float] = defaultdict(float)  # seconds, by what held it up
    for epoch in range(recipe.epochs):
        limit, rate = _pace(recipe, rates, epoch, num_nodes)
        held_up[limit] += rates.num_train / rate
    training = sum(held_up.values())
    evaluation = min(rates.gpus_at(recipe.data.eval_size) / _FORWARD, rates.loader) * num_nodes
    seconds = training + recipe.epochs * rates.num_validation / evaluation
    return Duration(
        hours=seconds / _SECONDS,
        images_per_second=recipe.epochs * rates.num_train / training,
        limit=max(held_up, key=lambda limit: held_up[limit]),
    )


def _pace(recipe: Recipe, rates: Rates, epoch: int, num_nodes: int) -> tuple[str, float]:
    """Returns what holds an epoch up, and its images/s."""
    paces = {
        "devices": rates.gpus_at(recipe.data.size_at(epoch)) * num_nodes,
        "loader": rates.loader * num_nodes,
    }
    if epoch == 0 or not rates.fits_memory:
        paces["volume"] = rates.images_from_volume
    return min(paces.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Variant:
    """A run, or one like it with something changed.

    Attributes:
        name: What is changed.
        recipe: What would run.
        rates: What the machine does then.
    """

    name: str
    recipe: Recipe
    rates: Rates


def variants(recipe: Recipe, rates: Rates, resized_part: float) -> Iterator[Variant]:
    """Yields the run as asked, and what resized shards, sizes and volumes would change.

    Args:
        recipe: What would run.
        rates: What the machine does.
        resized_part: Bytes of a picture whose shorter side is 256 px, as a part of the whole one's.
    """
    asked = Variant("as asked", recipe, rates)
    yield asked
    for other in _others(recipe, rates, resized_part):
        if (other.recipe, other.rates) != (asked.recipe, asked.rates):
            yield other


def _others(recipe: Recipe, rates: Rates, resized_part: float) -> Iterator[Variant]:
    """Yields what may be changed; some of it may be so already."""
    resized = replace(rates, bytes_per_image=rates.bytes_per_image * resized_part)
    yield Variant("shards resized, short=256", recipe, resized)
    for size in (128, 160, 192, 224):
        data = recipe.data.model_copy(
            update={"train_size": size, "final_size": None, "growth": None}
        )
        changed = recipe.model_copy(update={"data": data})
        yield Variant(f"crops of {size} px throughout", changed, rates)
    for volume, name in ((125, "gp3 as it comes"), (1000, "gp3, paid for")):
        yield Variant(f"volume of {volume} MiB/s ({name})", recipe, replace(rates, volume=volume))
