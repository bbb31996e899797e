"""The classes of shards made by others, from every source that names them.

A sample gives its class by index or by wnid; `classes.json` gives each index a wnid, a mapping
gives each wnid a name. All sources must agree: a contradiction is an error with both values and
where they were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import WNID, Classes, read_synset_mapping
from imagenet_rn50.shards.manifest import TRAIN
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import quoted
from imagenet_rn50.utils.logging import logger

MAPPING = "LOC_synset_mapping.txt"
_REPACK = (
    "sort the images into train/<wnid>/ and val/<wnid>/ by their right wnids, and pack them: "
    "python shard_imagenet.py pack"
)


class Claim(NamedTuple):
    """The class that a sample gives: its index, its wnid, or both."""

    label: int | None
    wnid: str | None


# The first sample that makes a claim, and its shard.
Seen = Mapping[Claim, str]


def classes_of(folder: Path, mapping: Path | None, seen_in: Mapping[str, Seen]) -> Classes | None:
    """Find the classes of the shards in `folder`.

    Wnids in the samples decide where there are any: a mapping then only gives names. Without them,
    a mapping names classes by position, which is logged.

    Args:
        folder: May hold `classes.json` and `LOC_synset_mapping.txt`.
        mapping: A list of classes that the user named, as `Classes.read` takes it.
        seen_in: The claims of the samples of each split.

    Returns:
        The classes; None when the samples' class indices have no known wnids.

    Raises:
        InputError: When two sources contradict each other.
    """
    seen = {claim: place for each in seen_in.values() for claim, place in each.items()}
    listed = Classes.load(folder) if (folder / CLASSES_NAME).is_file() else None
    path = where = mapping or folder / MAPPING
    if not path.is_file():
        where = folder / CLASSES_NAME
        classes = _from_samples(seen, seen_in.get(TRAIN, {})) if listed is None else listed
    elif listed is not None:
        names = Classes.read(path)
        _require_in_range(names, seen, path)
        where = folder / CLASSES_NAME
        classes = _named(listed, where, names, path, is_chosen=mapping is not None)
    else:
        classes = _from_mapping(path, seen, folder)
    if classes is not None:
        _require_agreement(classes, seen, where)
    return classes


def _from_mapping(path: Path, seen: Seen, folder: Path) -> Classes:
    """Take the classes of a mapping; only those that occur where the indices count only these."""
    classes = Classes.read(path)
    indices = {claim.label for claim in seen} - {None}
    known = {claim.label: claim.wnid for claim in seen if None not in claim}
    if not all(map(WNID.fullmatch, classes.wnids)):
        known = {}  # the samples' wnids are not what it lists
    if unknown := len(indices - known.keys()):
        if not known:
            _require_position(path, classes, seen)
        logger.info(
            f"{unknown:,} class indices have no wnid in the shards: {path} names them by position "
            "alone. Compare names and images: "
            f"python shard_imagenet.py sample --shards {quoted(folder)}"
        )
    if not known:
        return classes
    _require_one_to_one(seen)
    if all(classes.index_of.get(wnid or "") == index for index, wnid in known.items()):
        return classes
    wnids = [known[index] or "" for index in sorted(known, key=lambda index: index or 0)]
    if indices == set(range(len(wnids))) and wnids == sorted(wnids):
        names = dict(zip(classes.wnids, classes.names, strict=True))
        if all(wnid in names for wnid in wnids):  # of more classes than these shards have
            return Classes(tuple(wnids), tuple(names[wnid] for wnid in wnids))
    return classes  # contradicted: `_require_agreement` says where


def _require_position(path: Path, classes: Classes, seen: Seen) -> None:
    """Raise an error if positions in a mapping cannot be the class indices of the shards."""
    indices = {claim.label for claim in seen if claim.label is not None}
    problem = None
    if indices == set(range(len(indices))) and len(indices) < len(classes):
        problem = f"class indices 0 to {len(indices) - 1}, without wnids"
        expected = f"as many classes as {path} lists: {len(classes)}"
        fix = "leave only the classes of these shards in the mapping"
    elif all(map(WNID.fullmatch, classes.wnids)) and not _is_sorted(path):
        problem = "class indices without wnids"
        expected = f"{path} sorted by wnid: else an index may be a line or a rank"
        fix = "sort the mapping if the indices are ranks of sorted wnids, as ImageNet's are"
    if problem:
        raise InputError(
            f"{path} cannot name the classes of the shards by position",
            expected=expected,
            found=problem,
            fix=fix,
        )


def _is_sorted(path: Path) -> bool:
    """Return whether the lines of a mapping are sorted; lists in JSON are, or are not read."""
    try:
        wnids = list(read_synset_mapping(path))
    except InputError:
        return True
    return wnids == sorted(wnids)


def _named(
    listed: Classes, where: Path, mapping: Classes, path: Path, *, is_chosen: bool
) -> Classes:
    """Assign the classes of `classes.json` the names of a mapping."""
    name_of = dict(zip(mapping.wnids, mapping.names, strict=True))
    for index, (wnid, name) in enumerate(zip(listed.wnids, listed.names, strict=True)):
        if wnid not in name_of:
            raise InputError(
                f"{where} and {path} list different classes",
                expected=f"{wnid} {name!r}, class {index} of {where}, in {path} too",
                found=f"{len(mapping)} classes without it",
                fix=f"give the mapping of these classes, or delete {where} if it is wrong",
            )
        if name not in {wnid, name_of[wnid]} and not is_chosen:
            raise InputError(
                f"{where} and {path} give {wnid} two names",
                expected="one name per wnid",
                found=f"{name!r} in {where}, {name_of[wnid]!r} in {path}",
                fix="say which names count: --mapping FILE",
            )
    return Classes(listed.wnids, tuple(name_of[wnid] for wnid in listed.wnids))


def _from_samples(seen: Seen, train: Seen) -> Classes | None:
    """Take the classes from the wnids of the samples, which are their names, too.

    Args:
        seen: The claims of all samples.
        train: Those of the training samples.

    Returns:
        None when not every class index has a wnid.
    """
    indices = {claim.label for claim in seen if claim.label is not None}
    wnids = sorted({claim.wnid for claim in seen if claim.wnid is not None})
    _require_one_to_one(seen)
    known = {claim.label: claim for claim in seen if None not in claim}
    classes = Classes(tuple(wnids), tuple(wnids))
    if not indices:
        trained = {claim.wnid for claim in train}
        for claim, place in seen.items():
            if train and claim.wnid not in trained:
                raise InputError(
                    f"{place} has the wnid {claim.wnid}, which no training sample has",
                    expected="validation wnids among those of training, whose rank is the index",
                    fix=f"give the wnids of all classes: --mapping {MAPPING}",
                )
        return classes
    if unknown := sorted(set(wnids) - {claim.wnid for claim in known.values()}):
        place = next(place for claim, place in seen.items() if claim.wnid == unknown[0])
        raise InputError(
            f"{place} gives its class as {unknown[0]}, whose class index is not known",
            expected="wnids whose index other samples, or a mapping, give",
            fix=f"give the wnids of all classes: --mapping {MAPPING}",
        )
    ranked = sorted(known.values(), key=lambda claim: claim.label or 0)
    for claim, wnid in zip(ranked, wnids, strict=True):
        if claim.wnid != wnid:
            raise InputError(
                f"{seen[claim]} has the class index {claim.label} and the wnid {claim.wnid}",
                expected="class indices that are ranks of sorted wnids",
                found=f"{claim.wnid} has rank {wnids.index(claim.wnid or '')} of {len(wnids)}",
                fix=_REPACK,
            )
    return classes if indices == set(range(len(wnids))) else None


def _require_one_to_one(seen: Seen) -> None:
    """Raise an error if an index has two wnids, or a wnid two indices."""
    for position, names in enumerate(("class index", "wnid")):
        firsts: dict[int | str, Claim] = {}
        for claim in seen:
            if None in claim:
                continue
            key = claim[position]
            first = firsts.setdefault(key, claim)  # type: ignore[arg-type]
            if first != claim:
                other = 1 - position
                raise InputError(
                    f"the {names} {key} has two {('wnids', 'class indices')[position]}",
                    expected="one",
                    found=f"{first[other]} in {seen[first]}, {claim[other]} in {seen[claim]}",
                    fix=_REPACK,
                )


def _require_in_range(classes: Classes, seen: Seen, where: Path) -> None:
    """Raise an error if a sample has a class index that the list of classes lacks."""
    indices = {claim.label: place for claim, place in seen.items() if claim.label is not None}
    largest = max(indices, default=0)
    if largest >= len(classes):
        raise InputError(
            f"{indices[largest]} has the class index {largest}, beyond the {len(classes)} known "
            "classes",
            expected=f"class indices from 0 to {len(classes) - 1}, as {where} lists them",
            found=None if 0 in indices else "no sample of class 0: indices may begin at 1",
            fix=_REPACK if 0 not in indices else _correct(where),
        )


def _correct(where: Path) -> str:
    """Return what to do about a list of classes that may be wrong."""
    if where.name == CLASSES_NAME:
        return f"delete {where} if it is wrong, and give the right list: --mapping {MAPPING}"
    return f"give the right list of all classes if this one is wrong: --mapping {MAPPING}"


def _require_agreement(classes: Classes, seen: Seen, where: Path) -> None:
    """Raise an error if a sample contradicts the list of classes."""
    _require_in_range(classes, seen, where)
    for claim, place in seen.items():
        index, wnid = claim
        if wnid is None or (index is not None and not WNID.fullmatch(classes.wnids[index])):
            continue  # a folder's name, say, stands for what its images' wnids have in common
        if wnid not in classes.index_of:
            raise InputError(
                f"{place} has the wnid {wnid}, which {where} lacks",
                expected=f"only the {len(classes)} classes of {where}",
                fix=_correct(where),
            )
        if index is not None and index != classes.index_of[wnid]:
            raise InputError(
                f"{place} has the class index {index} and the wnid {wnid}",
                expected=f"class index {classes.index_of[wnid]}, the index of {wnid} in {where}",
                found=f"{index}, which {where} gives to {classes.wnids[index]} "
                f"{classes.names[index]!r}",
                fix=f"{_correct(where)}; if the class indices are wrong, {_REPACK}",
            )


def log_missing(classes: Classes, labels_of: Mapping[str, set[int]]) -> None:
    """Log how many classes have no sample in a split."""
    for split, labels in labels_of.items():
        if missing := sorted(set(range(len(classes))) - labels):
            logger.info(
                f"{split}: {len(missing):,} of the {len(classes):,} classes have no samples, such "
                f"as class {missing[0]} ({classes.labels[missing[0]]})"
            )
