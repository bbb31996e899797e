"""Whether a model and the data speak of the same classes, in the same order.

Names of ImageNet's classes differ from model to model ("tench, Tinca tinca" or "tench"), so only
the first of a class's names is compared, and only a contradiction is an error: a label that is the
name of another class, or labels of which none is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.errors import InputError

_NAMELESS = re.compile(r"LABEL_\d+|\d+")


def require_same_classes(model: str, labels: Sequence[str], where: str, classes: Classes) -> None:
    """Stops where a model's classes are not those of the data.

    Args:
        model: The model, for the message.
        labels: Its names for class indices 0, 1, ...
        where: Where the classes come from, for the message.
        classes: The classes of the data.

    Raises:
        InputError: When they differ in number, or a label contradicts the class of its index.
    """
    if len(labels) != len(classes):
        raise InputError(
            f"{model} and {where} do not speak of the same classes",
            expected=f"a model of {len(classes)} classes",
            found=f"one of {len(labels)}",
        )
    if all(_NAMELESS.fullmatch(label) for label in labels):
        return
    by_wnid = all(WNID.fullmatch(label) for label in labels)
    names = [first_name(name) for name in (classes.wnids if by_wnid else classes.names)]
    if not by_wnid and all(WNID.fullmatch(name) for name in names):
        return  # shards without names: words and wnids cannot be compared
    counts = Counter(names)
    index_of = {name: i for i, name in enumerate(names) if counts[name] == 1}
    found = [index_of.get(first_name(label)) for label in labels]
    wrong = next((i for i, index in enumerate(found) if index not in {None, i}), None)
    if wrong is None and any(index is not None for index in found):
        return
    example = wrong or 0
    raise InputError(
        f"the classes of {model} are not those of {where}, or not in their order",
        expected=f"class {example} to be {classes.wnids[example]} {names[example]!r}",
        found=f"{labels[example]!r}",
        fix="evaluate it over the data of its own classes, or correct id2label in its config.json",
    )


def require_same_wnids(one: str, classes: Classes, other: str, others: Classes) -> None:
    """Stop where two lists of classes give one index two wnids.

    Args:
        one: Where the first list comes from, for the message.
        classes: The first list.
        other: Where the second list comes from.
        others: The second list; class names that are no wnids are not compared.

    Raises:
        InputError: When they differ.
    """
    pairs = zip(classes.wnids, others.wnids, strict=False)
    for index, (wnid, found) in enumerate(pairs):
        if wnid != found and WNID.fullmatch(wnid) and WNID.fullmatch(found):
            raise InputError(
                f"{one} and {other} list different classes",
                expected=f"class {index} to be {wnid} {classes.names[index]!r}, as in {one}",
                found=f"{found} {others.names[index]!r} in {other}",
                fix="use the list that the model and the data were made with",
            )


def first_name(label: str) -> str:
    """Returns the first of a class's names, without a wnid in parentheses that may follow it."""
    return label.partition(",")[0].partition(" (")[0].strip()
