"""Which files are shards, and of which split: by their names, by patterns, or by `_info.json`.

Recognised names are `imagenet1k-train-0000.tar` (ours, timm's), `train/000.tar`, and the like.
Names without a split, such as img2dataset's `00000.tar`, need `--train` or `--validation`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.shards import audit
from imagenet_rn50.shards.labels import MAPPING
from imagenet_rn50.shards.manifest import INFO_NAME, TRAIN, VALIDATION, Shard
from imagenet_rn50.shards.sources.base import readable
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json
from imagenet_rn50.utils.formatting import counted, shortened
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.storage import FileInfo

_SPLIT = "(?P<split>train|validation|valid|val)"
_NUMBER = r"(?P<number>\d+)(?:-of-(?P<total>\d+))?\.tar"
_SHARD_NAME = re.compile(rf"(?:(?P<dataset>.+?)[-_])?{_SPLIT}[-_]{_NUMBER}")
_IN_SPLIT_FOLDER = re.compile(rf"{_SPLIT}/(?:[^/]*?[^/\d])?{_NUMBER}")
# Tars of other names, compressed ones, and downloads under way.
_LIKE_TAR = re.compile(
    r".+\.(?:tar|tgz|tbz2?|txz|tzst|tar\.(?:gz|bz2|xz|zst|lz4)|tar\.(?:.+\.)?"
    r"(?:part|partial|tmp|download|crdownload|incomplete|aria2))",
    re.IGNORECASE,
)
_OURS = re.compile(r"manifest(-\w+)?\.(json|npz)")
_BESIDE = frozenset({INFO_NAME, CLASSES_NAME, MAPPING, audit.REPORT_NAME, audit.DATA_NAME})
SPLITS_OF_INFO = {"train": TRAIN, **dict.fromkeys(("validation", "valid", "val"), VALIDATION)}
"""The split of each name that a split or its folder may have; others are not indexed."""
_DEPTH = 2  # of train/000.tar
_GLOB = frozenset("*?[")


class FoundShard(NamedTuple):
    """A tar whose split is known.

    Args:
        split: `train` or `validation`.
        number: Its number in the split.
        dataset: The name of the data set that its name has; else the folder's.
        total: How many shards its name says there are; 0 where it does not.
        name: Its path in the folder of the shards.
        info: What is known of the file.
    """

    split: str
    number: int
    dataset: str
    total: int
    name: str
    info: FileInfo


@dataclass(frozen=True)
class Listing:
    """The files where the shards are.

    Args:
        place: The folder, as messages name it.
        dataset: Name of the data set where the shards' names have none.
        files: By path in the folder; None where a web server does not list them.
    """

    place: str
    dataset: str
    files: Mapping[str, FileInfo] | None


@dataclass(frozen=True)
class InfoSplit:
    """A split as timm's `_info.json` describes it.

    Args:
        lengths: Number of samples by name of the shard.
        alt_label: The JSON field that holds the labels; None where `.cls` does.
    """

    lengths: dict[str, int] = field(default_factory=dict)
    alt_label: str | None = None


def depth_of(patterns: Iterable[str | None]) -> int:
    """Return how deep to list for these patterns: 1 for the folder alone."""
    return max([_DEPTH, *(pattern.count("/") + 1 for pattern in patterns if pattern)])


def needs_list(patterns: Iterable[str | None]) -> bool:
    """Return whether patterns name shards only together with a list of files."""
    given = [pattern for pattern in patterns if pattern]
    return not given or any(_GLOB & set(pattern) for pattern in given)


def local_files(folder: Path, depth: int) -> dict[str, FileInfo]:
    """Return the files of a folder of this machine by their path in it; hidden ones are left out.

    Raises:
        InputError: When there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder",
            expected="the folder of the shards",
            found="a file" if folder.exists() else "nothing of that name",
        )
    found = {}
    for level in range(depth):
        for path in sorted(folder.glob("/".join(["[!.]*"] * (level + 1)))):
            if path.is_file():
                status = path.stat()
                version = str(status.st_mtime_ns)
                name = path.relative_to(folder).as_posix()
                found[name] = FileInfo(status.st_size, version=version)
    return found


def find_shards(
    listing: Listing,
    *,
    train: str | None = None,
    validation: str | None = None,
    info: Mapping[str, InfoSplit] | None = None,
) -> list[FoundShard]:
    """Find the shards, training first, by number.

    Args:
        listing: The files.
        train: Names of the training shards: with `*` and `?`, `{0000..0123}`, and `::` in between.
        validation: Names of the validation shards.
        info: The splits of `_info.json`, which decides where names do not; None without one.

    Raises:
        InputError: When there are none; other tars lie among them; they are of two data sets; or
            one is missing, or comes in two spellings.
    """
    if train or validation:
        found = _by_pattern(listing, {TRAIN: train, VALIDATION: validation})
    else:
        found, others = _by_name(listing)
        if info and (others or not found):
            found, others = _by_info(listing, info), []
        if not found or others:
            raise _unrecognised(listing, found, others)
        found.sort(key=lambda shard: (shard.split, shard.number, shard.name))
        if not info:
            _require_complete(found)
    for shard in found:
        Shard(shard.name, 0, 0, "")  # raises for a path that leads out of the folder
        if not shard.name.isprintable():
            raise InputError(
                f"the shard {readable(shard.name)!r} in {listing.place} cannot be listed",
                expected="printable UTF-8 names",
                fix="rename it",
            )
    _log_others(listing, found)
    return found


def _by_name(listing: Listing) -> tuple[list[FoundShard], list[str]]:
    """Return the shards whose names say their split, and the names of other tars."""
    found, others = [], []
    for name, info in (listing.files or {}).items():
        match = _SHARD_NAME.fullmatch(name) if "/" not in name else _IN_SPLIT_FOLDER.fullmatch(name)
        if match:
            split = TRAIN if match["split"] == TRAIN else VALIDATION
            dataset = match.groupdict().get("dataset") or listing.dataset
            total = int(match["total"] or 0)
            found.append(FoundShard(split, int(match["number"]), dataset, total, name, info))
        elif _LIKE_TAR.fullmatch(name) and ("/" not in name or _is_in_split_folder(name)):
            others.append(name)
    return found, others


def _is_in_split_folder(name: str) -> bool:
    return name.partition("/")[0] in SPLITS_OF_INFO


def _by_info(listing: Listing, info: Mapping[str, InfoSplit]) -> list[FoundShard]:
    """Return the shards that `_info.json` lists."""
    found = []
    for split_name, split in info.items():
        if split_name not in SPLITS_OF_INFO:
            logger.info(f"{INFO_NAME}: the split {split_name!r} is not indexed")
            continue
        for number, name in enumerate(split.lengths):
            known = FileInfo() if listing.files is None else listing.files.get(name)
            if known is None:
                raise InputError(
                    f"{INFO_NAME} lists {name}, which is not in {listing.place}",
                    expected="every shard that it lists",
                    fix="complete the shards, or name those to index with --train and --validation",
                )
            split_of_ours = SPLITS_OF_INFO[split_name]
            found.append(FoundShard(split_of_ours, number, listing.dataset, 0, name, known))
    return found


def _unrecognised(listing: Listing, found: list[FoundShard], others: list[str]) -> InputError:
    """Return the error for tars whose names do not say what they are."""
    names = shortened([readable(name) for name in sorted(others)], 3)
    patterns = 'name the shards: --train "PATTERN" --validation "PATTERN"'
    if listing.files is None:
        return InputError(
            f"{listing.place} does not list its files",
            expected=f"a web server that lists them, or an {INFO_NAME}",
            fix=f"{patterns}, such as --train 'imagenet1k-train-{{0000..1023}}.tar'",
        )
    is_plain = bool(others) and all(name.lower().endswith(".tar") for name in others)
    if is_plain and not found:
        fix: str | None = f"{patterns}, such as --train '*.tar'; either may be left out"
    elif others:
        fix = (
            "decompress them, complete their download, rename them, or move them elsewhere; or "
            f"{patterns}"
        )
    else:
        fix = None
    return InputError(
        f"{listing.place} holds {'other tars beside its' if found else 'no'} shards"
        + (" whose names give a split" if is_plain and not found else ""),
        expected="names like imagenet1k-train-0000.tar and imagenet1k-validation-00.tar, or "
        "train/000.tar",
        found=names or "no tar files",
        fix=fix,
    )


def _require_complete(found: list[FoundShard]) -> None:
    """Raise an error if shards of a numbered set are missing, or others are among them."""
    first = found[0]
    for shard in found:
        if shard.dataset != first.dataset:
            raise InputError(
                f"{first.name} and {shard.name} are named as two data sets",
                expected=f"shards of {first.dataset} alone",
                fix="move one of the two sets elsewhere, or rename its shards",
            )
    for one, other in pairwise(found):
        if one[:2] == other[:2]:
            raise InputError(
                f"{one.name} and {other.name} are the same shard in two spellings",
                expected=f"number {one.number} of {one.split} once",
                fix="move one of the two sets elsewhere",
            )
    for split in dict.fromkeys(shard.split for shard in found):
        numbers = [shard.number for shard in found if shard.split == split]
        totals = sorted({shard.total for shard in found if shard.split == split})
        if len(totals) > 1:
            raise InputError(
                f"the {split} shards are numbered in two ways",
                expected="the same -of-NNNNN in all names, or none",
                found=", ".join(f"-of-{total:05d}" if total else "none" for total in totals),
            )
        last = max(numbers[-1], totals[0] - 1)
        if missing := sorted(set(range(last + 1)) - set(numbers)):
            raise InputError(
                f"{len(missing)} of {last + 1} {split} shards are missing",
                expected=f"numbers 0 to {last}",
                found=f"{len(numbers)} shards, without {shortened(missing)}",
                fix="download them; to index a part on purpose, number its shards from 0, or name "
                "them with --train and --validation",
            )


def _by_pattern(listing: Listing, patterns: Mapping[str, str | None]) -> list[FoundShard]:
    """Return the shards that the patterns name, each split in the order of their numbers."""
    found: list[FoundShard] = []
    split_of: dict[str, str] = {}
    for split, pattern in patterns.items():
        names = _matching(listing, split, pattern) if pattern else []
        dataset = _prefix_of(names, listing)
        for number, name in enumerate(names):
            if name in split_of:
                raise InputError(
                    f"{name} is named by both --train and --validation",
                    expected="each shard in one split",
                )
            split_of[name] = split
            info = (listing.files or {}).get(name, FileInfo())
            found.append(FoundShard(split, number, dataset, 0, name, info))
        _warn_of_gaps(split, names)
    return found


def _prefix_of(names: list[str], listing: Listing) -> str:
    """Return the name of the data set: what the names give, if all give the same."""
    matches = [_SHARD_NAME.fullmatch(name) for name in names]
    prefixes = {None if match is None else match["dataset"] for match in matches}
    return (prefixes.pop() if len(prefixes) == 1 else None) or listing.dataset


def _matching(listing: Listing, split: str, pattern: str) -> list[str]:
    """Return the names that a pattern gives, in natural order.

    Raises:
        InputError: When it gives none, one that is not there, or one twice.
    """
    option = f"--{split}"
    names: list[str] = []
    for part in pattern.split("::"):
        for name in _expanded(option, _relative(option, part, listing.place)):
            if _GLOB & set(name):
                matches = [file for file in listing.files or () if _matches(file, name)]
                if not matches:
                    raise _no_match(option, name, listing)
                names += matches
            else:
                names.append(name)
    if others := [name for name in names if not name.endswith(".tar")]:
        raise InputError(f"{option} {pattern} names {others[0]}", expected="names that end in .tar")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{option} {pattern} names {twice[0]} twice", expected="each shard once")
    if listing.files is not None and (missing := [n for n in names if n not in listing.files]):
        raise InputError(
            f"{len(missing)} of the {len(names)} shards of {option} {pattern} are not in "
            f"{listing.place}: {_shortened(missing)}",
            expected="every shard that the pattern names",
        )
    return sorted(names, key=_natural)


def _no_match(option: str, pattern: str, listing: Listing) -> InputError:
    tars = sorted((name for name in listing.files or () if name.endswith(".tar")), key=_natural)
    return InputError(
        f"{option} {pattern} names no tar in {listing.place}",
        expected="a pattern of paths relative to --shards",
        found=_shortened(tars) or "no tar files",
    )


def _relative(option: str, pattern: str, place: str) -> str:
    """Return a pattern relative to the folder; it may be given with the folder in front."""
    pattern = pattern.strip().removeprefix(f"{place.rstrip('/')}/").removeprefix("./")
    if "://" in pattern or {"", ".."} & set(pattern.split("/")):
        raise InputError(
            f"{option} {pattern!r} is not a pattern of shards in {place}",
            expected="names or patterns relative to --shards, such as train/{0000..0123}.tar",
        )
    return pattern


def _expanded(option: str, pattern: str) -> list[str]:
    """Expand `{0000..0123}` and `{a,b}` as webdataset does."""
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise InputError(
            f"{option} {pattern} has a brace without its other half", expected="{0000..0123}"
        ) from None


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches the path of a tar, folder by folder."""
    names, patterns = name.split("/"), pattern.split("/")
    return (
        name.endswith(".tar")
        and len(names) == len(patterns)
        and all(map(fnmatchcase, names, patterns))
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key in which shard 10 follows shard 9."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _warn_of_gaps(split: str, names: list[str]) -> None:
    """Warn if the last numbers in the names have gaps: an incomplete download, maybe."""
    found = [re.findall(r"\d+", PurePosixPath(name).name) for name in names]
    if not names or not all(found):
        return
    numbers = {int(digits[-1]) for digits in found}
    if len(numbers) == len(names) and (missing := set(range(min(numbers), max(numbers))) - numbers):
        logger.warning(
            f"warning: {split}: {len(missing)} numbers are missing between the first shard and the "
            f"last: {_shortened([str(number) for number in sorted(missing)])}"
        )


def _log_others(listing: Listing, found: list[FoundShard]) -> None:
    """Log which other files are beside the shards; they are not read."""
    shards = {shard.name for shard in found}
    others = [
        name
        for name in listing.files or ()
        if name not in shards | _BESIDE and not _OURS.fullmatch(name) and name[0] != "."
    ]
    if tars := [name for name in others if _LIKE_TAR.fullmatch(name)]:
        logger.info(f"not indexed: {counted(len(tars), 'other tar')}: {_shortened(sorted(tars))}")
    kinds = Counter(PurePosixPath(name).suffix or "other" for name in set(others) - set(tars))
    if kinds:
        files = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        logger.info(f"ignored beside the shards: {files} files")


def _shortened(names: list[str]) -> str:
    return shortened([readable(name) for name in names])


def read_info(path: Path) -> dict[str, InfoSplit]:
    """Read timm's `_info.json`.

    Raises:
        InputError: When it is something else, or contradicts itself.
    """
    content = read_json(path)
    try:
        return {name: _info_split(path, name, split) for name, split in content["splits"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read",
            expected="splits with filenames, shard_lengths and num_samples, as timm writes it",
            found=f"an entry without {error}" if isinstance(error, KeyError) else "something else",
            fix=f"move {path} elsewhere if it is not of these shards",
        ) from None


def _info_split(path: Path, name: str, split: dict[str, Any]) -> InfoSplit:
    names, counts = split["filenames"], split["shard_lengths"]
    lengths = {str(file): int(count) for file, count in zip(names, counts, strict=True)}
    if split["num_samples"] != sum(lengths.values()):
        raise InputError(
            f"{path} contradicts itself",
            expected=f"{sum(lengths.values())} samples, as its shard_lengths add up to",
            found=f"num_samples {split['num_samples']} of {name}",
            fix=f"move {path} elsewhere if it is not of these shards",
        )
    return InfoSplit(lengths, split.get("alt_label") or None)
