"""Subsets: a manifest that lists part of the samples of shards, wherever the shards are.

No image is copied. Class indices become the ranks of the subset's sorted wnids, as in every data
set here; the manifest keeps the shards' own indices for `verify`.

Which classes are chosen at random depends on their wnids and the seed alone, and which images a
class keeps on their keys and the seed, not on the shards that hold them: 10 images per class are
among the 20 of the same seed, and a hold-out stays the same when the data is packed anew (see
`holdout`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.holdout import divide_class, key_ranks, num_selected, require_fraction
from imagenet_rn50.shards.imagenet1k import dataset_name, require_dataset_name
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Split
from imagenet_rn50.shards.store import (
    ShardStore,
    location_from,
    open_shards,
    resolve_location,
)
from imagenet_rn50.utils.errors import InputError, require_at_least
from imagenet_rn50.utils.files import make_folder, read_text, sha256_of_file
from imagenet_rn50.utils.formatting import counted, quoted, shortened
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.storage import is_address

_LISTS = Path(__file__).parent / "class_lists"
LIST_NAMES = ("imagenet100", "imagenette", "imagewoof")
"""Published lists of ImageNet classes: of CMC (Tian et al., 2019), and of fast.ai."""

_MAX_SHOWN = 5
_RANDOM = {"num_classes", "images_per_class", "fraction", "holdout"}


@dataclass(frozen=True)
class Selection:
    """Which samples a subset has.

    Args:
        classes: Name of a published list, or a file with a wnid (or class name) per line, or a
            classes.json; None for all classes.
        num_classes: Number of classes chosen at random; None for all.
        images_per_class: Largest number of training images per class; None for all.
        fraction: Fraction of the training images of each class, in (0, 1].
        holdout: Fraction of the training images of each class that becomes the validation split,
            in (0, 1). It is taken first: neither `images_per_class` nor `fraction` changes it.
        train_only: Whether to leave out the validation split.
        validation_only: Whether to leave out the training split.
        seed: Seed of all random choices.
    """

    classes: str | None = None
    num_classes: int | None = None
    images_per_class: int | None = None
    fraction: float | None = None
    holdout: float | None = None
    train_only: bool = False
    validation_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: When one is out of range, or two contradict each other.
        """
        for name in ("num_classes", "images_per_class"):
            if (value := getattr(self, name)) is not None:
                require_at_least(f"--{name.replace('_', '-')}", value, 1)
        require_at_least("--seed", self.seed, 0)
        require_fraction("--fraction", self.fraction, includes_one=True)
        require_fraction("--holdout", self.holdout)
        for one, other in (
            ("classes", "num_classes"),
            ("images_per_class", "fraction"),
            ("train_only", "validation_only"),
            ("holdout", "validation_only"),
            ("images_per_class", "validation_only"),
            ("fraction", "validation_only"),
        ):
            if getattr(self, one) and getattr(self, other):
                flags = [f"--{name.replace('_', '-')}" for name in (one, other)]
                raise InputError(f"{flags[0]} contradicts {flags[1]}", fix="pass one of them")

    def as_dict(self) -> dict[str, Any]:
        """Return the options that were given, for the manifest; the seed if it decides anything.

        Of a file, only the name: manifests are published, and paths are private.
        """
        given = {name: value for name, value in asdict(self).items() if value and name != "seed"}
        if self.classes is not None:
            given["classes"] = Path(self.classes).name
        return given | ({"seed": self.seed} if given.keys() & _RANDOM else {})


def options_text(recorded: Mapping[str, Any]) -> str:
    """Return what a manifest records as its `subset` as the options of the command."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {quoted(value)}")
        for name, value in recorded.items()
    )


def subset(
    shards: str,
    out: Path,
    selection: Selection,
    *,
    dataset: str | None = None,
    cache: Path | None = None,
) -> Manifest:
    """Write a manifest of part of the samples of a shard set.

    Args:
        shards: Folder of the manifest to select from, itself a subset or not: path or address.
        out: Output folder; new or empty, or with the same subset.
        selection: What to select.
        dataset: Name of the subset; None for the name of `out`.
        cache: Where a remote manifest is kept on this machine.

    Returns:
        The manifest that was written.

    Raises:
        InputError: When nothing is selected, a class is unknown, or `out` holds something else.
    """
    if dataset is not None:
        require_dataset_name(dataset)
    store = open_shards(shards, cache=cache)
    parent = Manifest.load(store.folder)
    if not (store.folder / CLASSES_NAME).is_file():
        raise InputError(
            f"the classes of {shards} are not known",
            expected=f"{CLASSES_NAME} beside its manifest",
            fix="index the shards with a list of their classes: python shard_imagenet.py index "
            f"--shards {quoted(shards)} --mapping FILE",
        )
    all_classes = Classes.load(store.folder)
    chosen = _chosen_classes(all_classes, selection)
    splits = _select_splits(parent, all_classes, chosen, selection)
    classes = Classes(
        tuple(all_classes.wnids[label] for label in chosen),
        tuple(all_classes.names[label] for label in chosen),
    )
    _log_short_classes(splits, classes, selection)
    own_labels = parent.source_labels or range(len(all_classes))
    options: dict[str, Any] = {
        "subset": selection.as_dict(),
        "parent": {
            "dataset": parent.dataset,
            "fingerprint": Manifest.fingerprint_of(store.folder),
            "options": parent.options,
        },
    }
    if holdout := selection.holdout or (
        parent.options.get("holdout") if VALIDATION in splits else None
    ):
        options["holdout"] = holdout
    num_images = {name: split.num_samples for name, split in splits.items()}
    view = Manifest(
        dataset=dataset_name(dataset, out.resolve().name, classes, num_images, options),
        options=options,
        splits=splits,
        location=location_from(out, resolve_location(shards, parent.location)),
        source_labels=tuple(int(own_labels[label]) for label in chosen),
    )
    _save(view, classes, out)
    _warn_of_waste(view, store, out)
    return view


def _chosen_classes(classes: Classes, selection: Selection) -> list[int]:
    """Return the indices of the chosen classes, ascending.

    Raises:
        InputError: When a listed class is unknown, or there are fewer classes than asked for.
    """
    if selection.classes is not None:
        return _listed_classes(classes, selection.classes)
    if selection.num_classes is None:
        return list(range(len(classes)))
    if selection.num_classes > len(classes):
        raise InputError(
            f"--num-classes must be at most {len(classes)}, the number of classes, "
            f"got {selection.num_classes}"
        )
    ranks = key_ranks((wnid.encode() for wnid in classes.wnids), selection.seed, "classes")
    return sorted(np.argsort(ranks, kind="stable")[: selection.num_classes].tolist())


def _listed_classes(classes: Classes, listed: str) -> list[int]:
    path = _LISTS / f"{listed}.txt" if listed in LIST_NAMES else Path(listed)
    if not path.is_file():
        raise InputError(
            f"--classes {listed} is neither a published list nor a file",
            expected=f"{', '.join(LIST_NAMES)}, or a file with a wnid per line",
        )
    known = {**{name: label for label, name in enumerate(classes.labels)}, **classes.index_of}
    text = read_text(path)
    if text.lstrip()[:1] in {"[", "{"}:
        words = list(Classes.read(path).wnids)
    else:
        words = list(filter(None, (_class_in(line, known) for line in text.splitlines())))
    if not words:
        raise InputError(f"{path} lists no class", expected="a wnid per line")
    if unknown := [word for word in words if word not in known]:
        is_ambiguous = unknown[0] in classes.names
        raise InputError(
            f"{counted(len(unknown), 'line')} of --classes {listed} name no class of the shards: "
            f"{shortened(unknown)}",
            expected=f"some of their {len(classes)} classes, such as {classes.wnids[0]}",
            fix="list its wnid, since several classes have this name"
            if is_ambiguous
            else "take them from shards that have them, or correct the list",
        )
    counts = Counter(known[word] for word in words)
    if repeated := [label for label, count in counts.items() if count > 1]:
        raise InputError(
            f"{path} lists {classes.labels[repeated[0]]} twice", expected="each class once"
        )
    return sorted(counts)


def _class_in(line: str, known: Collection[str]) -> str:
    """Return the class that a line of a list names; empty for a comment."""
    if line.strip() in known:  # whatever characters it has
        return line.strip()
    text = line.strip() if line.lstrip().startswith("#") else line
    text = re.sub(r"(^|\s)#.*", "", text).strip()
    return text.split()[0] if WNID.match(text) else text


def _select_splits(
    parent: Manifest, classes: Classes, chosen: list[int], selection: Selection
) -> dict[str, Split]:
    """Return the selected samples of each split, with the subset's class indices.

    Raises:
        InputError: When a split is missing or has no sample left, training would have a single
            class, or `--holdout` would replace a validation split.
    """
    names = {TRAIN, VALIDATION} & parent.splits.keys()
    names -= {VALIDATION} if selection.train_only else set()
    names -= {TRAIN} if selection.validation_only else set()
    if selection.holdout is not None and VALIDATION in names:
        raise InputError(
            "--holdout would replace the validation split that the shards have",
            expected="shards without one",
            fix="leave --holdout out, or leave theirs out with --train-only",
        )
    if not names or (selection.holdout is not None and TRAIN not in names):
        raise InputError("the shards have no such split", found=f"splits {sorted(parent.splits)}")
    if TRAIN in names and len(chosen) < 2:
        raise InputError(
            f"the selection has a single class: {classes.labels[chosen[0]]}",
            expected="at least 2 classes to train on",
            fix="select more, or evaluate on this class alone with --validation-only",
        )
    rank = np.full(len(classes), -1)
    rank[chosen] = np.arange(len(chosen))
    splits = {}
    if TRAIN in names:
        train = parent.split(TRAIN)
        by_class = _by_class(train, chosen)
        held_out: list[NDArray[np.int64]] = []
        if selection.holdout is not None:
            names_of = [classes.labels[label] for label in chosen]
            by_class, held_out = _hold_out(train, by_class, names_of, selection)
        by_class = [_limited(train, indices, selection) for indices in by_class]
        splits[TRAIN] = _relabelled(train, by_class, rank)
        if held_out:
            splits[VALIDATION] = _relabelled(train, held_out, rank)
    if VALIDATION in names:
        validation = parent.split(VALIDATION)
        splits[VALIDATION] = _relabelled(validation, _by_class(validation, chosen), rank)
    for name, split in splits.items():
        if not split.num_samples:
            raise InputError(f"the selection has no {name} images", expected="at least one")
    return splits


def _by_class(split: Split, chosen: Iterable[int]) -> list[NDArray[np.int64]]:
    """Return the sample indices of each chosen class, ascending."""
    order = np.argsort(split.labels, kind="stable")
    bounds = np.searchsorted(split.labels[order], np.arange(int(split.labels.max()) + 2))
    return [
        order[bounds[label] : bounds[label + 1]] if label + 1 < len(bounds) else order[:0]
        for label in chosen
    ]


def _hold_out(
    train: Split, by_class: list[NDArray[np.int64]], names: list[str], selection: Selection
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Divide the samples of each class into training and validation; see `divide_class`.

    Raises:
        InputError: When a class has a single image.
    """
    assert selection.holdout is not None
    kept, held_out = [], []
    for indices, name in zip(by_class, names, strict=True):
        if len(indices):
            parts = divide_class(_keys(train, indices), name, selection.holdout, selection.seed)
            kept.append(indices[parts[0]])
            held_out.append(indices[parts[1]])
    return kept, held_out


def _limited(train: Split, indices: NDArray[np.int64], selection: Selection) -> NDArray[np.int64]:
    """Return the training samples of one class that the selection keeps."""
    limit = len(indices)
    if selection.images_per_class is not None:
        limit = min(selection.images_per_class, limit)
    if selection.fraction is not None:
        limit = min(num_selected(len(indices), selection.fraction), limit)
    if limit == len(indices):
        return indices
    ranks = key_ranks(_keys(train, indices), selection.seed, "train")
    return indices[np.argsort(ranks, kind="stable")[:limit]]


def _keys(split: Split, indices: NDArray[np.int64]) -> Iterable[bytes]:
    return (bytes(split.keys[index]) for index in indices)


def _relabelled(split: Split, by_class: list[NDArray[np.int64]], rank: NDArray[Any]) -> Split:
    """Return the chosen samples in the order of the shards, with the subset's class indices."""
    chosen = split.select(np.sort(np.concatenate(by_class)).astype(np.int64))
    return replace(chosen, labels=rank[chosen.labels].astype(np.int32))


def _log_short_classes(splits: dict[str, Split], classes: Classes, selection: Selection) -> None:
    """Log which classes have fewer images than `images_per_class`, or none in a split."""
    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(classes))
        least = selection.images_per_class if name == TRAIN else None
        short = [classes.labels[label] for label in np.flatnonzero(counts < (least or 1))]
        if short:
            wanted = f"fewer than {least} images" if least else "no images"
            logger.info(f"{name}: {len(short)} classes have {wanted}: {shortened(short)}")


def _save(view: Manifest, classes: Classes, out: Path) -> None:
    """Write classes and manifest.

    Raises:
        InputError: When `out` holds something else.
    """
    make_folder(out, fix="give another --out")
    others = sorted(path.name for path in out.iterdir() if not _is_of_manifest(path.name))
    has_manifest = (out / manifests.FILE_NAME).is_file()
    if has_manifest:
        found = Manifest.load(out)
        is_same = found.options == view.options and Classes.load(out) == classes
    if not is_same if has_manifest else others:
        raise InputError(
            f"{out} is not empty",
            expected="a new or empty folder, or one with the same subset",
            found="another manifest" if has_manifest else ", ".join(others[:_MAX_SHOWN]),
            fix="give another --out",
        )
    classes.save(out)
    replace(view, classes_sha256=sha256_of_file(out / CLASSES_NAME)).save(out)


def _is_of_manifest(name: str) -> bool:
    """Return whether a file may be left by a run that was interrupted before its last step."""
    return name == CLASSES_NAME or re.fullmatch(r"manifest-\w+\.npz|.+\.partial", name) is not None


def _warn_of_waste(view: Manifest, store: ShardStore, out: Path) -> None:
    """Warn if most of what training downloads would be samples of no use."""
    if not is_address(view.location or ""):
        return
    used = sum(int(split.lengths.sum()) for split in view.splits.values())
    num_bytes = sum(shard.num_bytes for split in view.splits.values() for shard in split.shards)
    if used < num_bytes / 2:
        logger.warning(
            f"warning: the subset needs {used / 1e9:,.2f} GB of the {num_bytes / 1e9:,.2f} GB in "
            f"the shards that training downloads; to download it once, pack it anew: "
            f"python shard_imagenet.py pack --source {quoted(out)} --out SHARDS"
        )
