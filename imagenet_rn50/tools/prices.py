"""The table of machines: what they are and cost, and how fast their GPUs train (`prices.yaml`).

Each row has a source and each provider a date. `estimate` prints both with what it computes.
"""

from __future__ import annotations

import json
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text
from imagenet_rn50.utils.parsing import parse_yaml

PRICES = Path(__file__).parent / "prices.yaml"
HOW_TO_MEASURE = (
    "run `doctor --json > doctor.json` there and pass --measured doctor.json, or "
    "pass --images-per-second"
)

Basis: TypeAlias = Literal["measured", "computed", "published"]
"""Where a figure comes from: measured by this project, computed, or published by others."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class VolumePrice(_Row):
    """What a gp3 volume costs, in USD a month."""

    gb_month: PositiveFloat  # of a GB
    mib_s_month: PositiveFloat  # of a MiB/s above the default throughput
    source: str


class Provider(_Row):
    """Who lends machines, and on which terms."""

    source: str
    looked_up: date
    volume: VolumePrice | None = None  # None if there is only the storage of the machine
    session_hours: PositiveFloat | None = None  # after which a machine is taken back
    weekly_hours: PositiveFloat | None = None


class Instance(_Row):
    """A type of machine; prices in USD an hour."""

    provider: str | None = None  # None if it is the user's
    gpus: PositiveInt
    gpu: str
    vcpus: PositiveInt
    memory_gib: PositiveFloat
    local_gb: PositiveFloat | None = None  # of storage of the machine's own, as NVMe; None: unknown
    network_gbps: PositiveFloat | None = None
    on_demand: NonNegativeFloat
    spot: PositiveFloat | None = None

    def has_gpu(self, name: str) -> bool:
        """Whether its GPU is a device that `torch.cuda.get_device_name` names so."""
        return set(self.gpu.split()) <= set(name.replace("-", " ").split())


class SinglePrecision(_Row):
    """The speed of float32, as a fraction of that of mixed precision."""

    part: PositiveFloat
    source: str


class Speed(_Row):
    """A speed of training ResNet-50 at 224 px in mixed precision."""

    gpu: str
    gpus: PositiveInt
    images_per_second: PositiveFloat
    basis: Basis
    source: str
    single_precision: SinglePrecision | None = None  # if it is not that of the table


class PriceTable(_Row):
    """The content of `prices.yaml`."""

    providers: dict[str, Provider]
    instances: dict[str, Instance]
    speeds: tuple[Speed, ...] = ()
    single_precision: SinglePrecision

    @model_validator(mode="after")
    def _check_providers(self) -> Self:
        for name, instance in self.instances.items():
            if instance.provider is not None and instance.provider not in self.providers:
                raise ValueError(f"{name}: there is no provider {instance.provider!r}")
        return self

    def instance(self, name: str) -> Instance:
        """Return an instance type.

        Raises:
            InputError: If the table does not have it.
        """
        if name not in self.instances:
            raise InputError(
                f"there is no price for {name!r}",
                expected=f"one of {', '.join(self.instances)}",
                fix="pass --prices with your own table, like imagenet_rn50/tools/prices.yaml",
            )
        return self.instances[name]

    def provider(self, instance: Instance) -> Provider | None:
        """Return who lends an instance, or None if it is the user's."""
        return None if instance.provider is None else self.providers[instance.provider]

    def speed(self, instance: Instance) -> Speed:
        """Return the speed of all GPUs of an instance.

        The reported number of GPUs nearest to the instance's is scaled in proportion.

        Raises:
            InputError: If the table has no speed of its GPU.
        """
        known = [speed for speed in self.speeds if speed.gpu == instance.gpu]
        if not known:
            raise InputError(
                f"the speed of a {instance.gpu} is not known",
                expected="a measurement",
                fix=HOW_TO_MEASURE,
            )
        nearest = min(known, key=lambda speed: abs(speed.gpus - instance.gpus))
        if nearest.gpus == instance.gpus:
            return nearest
        unit = "GPU" if nearest.gpus == 1 else "GPUs"
        scaled = {
            "gpus": instance.gpus,
            "images_per_second": nearest.images_per_second * instance.gpus / nearest.gpus,
            "source": f"{nearest.source}; scaled from {nearest.gpus} {unit}",
        }
        return nearest.model_copy(update=scaled)


def load_prices(path: Path = PRICES) -> PriceTable:
    """Read a price table.

    Raises:
        InputError: If there is no such file, or it is not a price table.
    """
    return _parse(read_text(path), source=str(path))


@lru_cache(maxsize=4)  # parsing takes longer than all that is computed with it
def _parse(text: str, source: str) -> PriceTable:
    content = parse_yaml(text, source)
    try:
        # From JSON, pydantic makes dates and tuples while everything else stays strict.
        return PriceTable.model_validate_json(json.dumps(content))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{source} is not a price table", found=found) from None
