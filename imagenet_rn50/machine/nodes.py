"""Where one machine ends: what several nodes need of volumes and network. Computed, never run here.

Notation: N nodes, n images/s of all together, b bytes an image, P parameters, B images a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from imagenet_rn50.machine.estimate import Rates
from imagenet_rn50.recipe import Recipe

PARAMETERS = 25_557_032  # ResNet-50
_SHARD_IMAGES = 1_251  # shard_imagenet.py's default
_STRAYING, _AHEAD = (
    3,
    2,
)  # shards in use beyond the window; read ahead: loading/order.py, prefetch.py


@dataclass(frozen=True)
class Demand:
    """What a node must be given so that the GPUs of all nodes are busy.

    Attributes:
        read_mib: Reading or downloading shards, MiB/s a node: n b. Each batch is shared by all
            nodes and samples of a shard go to all of them, so every node reads every shard.
        used_mib: Of these, what its own samples are: n b / N.
        cache_gb: Least space for a cache of remote shards: (window + 3 + workers + 2) shards.
        whole_gb: Space that keeps every shard, so that each is fetched once a run and not once an
            epoch.
        exchange_mb: What a node sends a step: 2 (N - 1) / N x 4 P, a ring over nodes.
        exchange_seconds: That over its network, at its full rate.
        step_seconds: B / n, without any exchange.
        world_sizes: Numbers of ranks on which the recipe gives the same batches.
    """

    read_mib: float
    used_mib: float
    cache_gb: float
    whole_gb: float
    exchange_mb: float
    exchange_seconds: float
    step_seconds: float
    world_sizes: tuple[int, ...]

    @property
    def efficiency_without_overlap(self) -> float:
        """Part of the speed that is left if no exchange were hidden behind the backward pass."""
        return self.step_seconds / (self.step_seconds + self.exchange_seconds)

    @property
    def can_be_hidden(self) -> bool:
        """Whether the exchange is shorter than the backward pass, two thirds of a step."""
        return self.exchange_seconds < 2 / 3 * self.step_seconds


def demand(
    recipe: Recipe, rates: Rates, num_nodes: int, num_workers: int, network_gbps: float
) -> Demand:
    """Computes what each of several nodes needs.

    Args:
        recipe: What would run.
        rates: Of one node.
        num_nodes: How many alike take part.
        num_workers: Loader processes of a rank.
        network_gbps: Network of a node, Gbit/s.
    """
    images = num_nodes * min(rates.gpus_at(recipe.data.size_at(0)), rates.loader)
    shard_bytes = _SHARD_IMAGES * rates.bytes_per_image
    shards = recipe.data.shuffle_window + _STRAYING + num_workers + _AHEAD
    exchanged = 2 * (num_nodes - 1) / num_nodes * 4 * PARAMETERS
    micro_batches = recipe.global_batch // recipe.micro_batch
    return Demand(
        read_mib=images * rates.bytes_per_image / 2**20,
        used_mib=images * rates.bytes_per_image / num_nodes / 2**20,
        cache_gb=shards * shard_bytes / 1e9,
        whole_gb=rates.num_train * rates.bytes_per_image / 1e9,
        exchange_mb=exchanged / 1e6,
        exchange_seconds=exchanged * 8 / (network_gbps * 1e9),
        step_seconds=recipe.global_batch / images,
        world_sizes=tuple(n for n in range(1, micro_batches + 1) if micro_batches % n == 0),
    )
