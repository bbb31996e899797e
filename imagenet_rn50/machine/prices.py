"""What EC2 instances are and cost, and how fast others found them: a dated table, or the user's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_yaml

PRICES = Path(__file__).parent / "prices.yaml"


class _Row(BaseModel):
    """A part of the table: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Instance(_Row):
    """One kind of machine."""

    gpus: PositiveInt
    gpu: str
    vcpus: PositiveInt
    memory_gib: PositiveFloat
    network_gbps: PositiveFloat | None = None
    """Most that its network gives, Gbit/s."""
    on_demand: NonNegativeFloat
    """USD an hour."""
    spot: PositiveFloat | None = None
    """USD an hour."""


class Speed(_Row):
    """A speed that others found, of training ResNet-50 at 224 px in mixed precision."""

    gpu: str
    gpus: PositiveInt
    images_per_second: PositiveFloat
    source: str


class SinglePrecision(_Row):
    """How much slower float32 is."""

    part: PositiveFloat
    source: str


class PriceTable(_Row):
    """The whole table."""

    source: str
    looked_up: date
    instances: dict[str, Instance]
    speeds: tuple[Speed, ...] = ()
    single_precision: SinglePrecision

    def instance(self, name: str) -> Instance:
        """Returns a kind of machine.

        Raises:
            InputError: When the table has no such kind.
        """
        if name not in self.instances:
            raise InputError(
                f"there is no price for {name!r}",
                expected=f"one of {', '.join(self.instances)}",
                fix="pass --prices with a table of your own, like machine/prices.yaml",
            )
        return self.instances[name]

    def speed(self, instance: Instance) -> FoundSpeed:
        """Returns the speed that others found on what is nearest to an instance's GPUs.

        Raises:
            InputError: When nothing is known of its GPUs.
        """
        known = [speed for speed in self.speeds if speed.gpu == instance.gpu]
        if not known:
            raise InputError(
                f"no speed of a {instance.gpu} is known here",
                expected="a measurement",
                fix="run `doctor --json > doctor.json` there and pass --measured doctor.json, or "
                "pass --images-per-second",
            )
        nearest = min(known, key=lambda speed: abs(speed.gpus - instance.gpus))
        source = nearest.source
        if nearest.gpus != instance.gpus:
            source += f"; of {nearest.gpus} GPUs, taken in proportion"
        rate = nearest.images_per_second * instance.gpus / nearest.gpus
        return FoundSpeed(rate, source)


@dataclass(frozen=True)
class FoundSpeed:
    """A speed and who says so.

    Attributes:
        images_per_second: Of all GPUs of a machine.
        source: Where it comes from.
    """

    images_per_second: float
    source: str


def load_prices(path: Path = PRICES) -> PriceTable:
    """Reads a table of prices.

    Raises:
        InputError: When there is no such file, or it is no such table.
    """
    content = read_yaml(path)
    try:
        # Through JSON, because dates and tuples are made there while all else stays strict.
        return PriceTable.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise InputError(f"{path} is not a table of prices", found=problems) from None
