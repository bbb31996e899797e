"""The official tars: a training tar of class tars, a flat validation tar, and the development kit.

They are read in place: an image is a stretch of the outer tar. The ground truth in the development
kit counts classes by ILSVRC ids, which are not ranks of sorted wnids; `meta.mat` translates.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.shards.formats import is_image
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Listed, Source, Unpacked, readable, with_keys
from imagenet_rn50.shards.sources.scan import JUNK, is_junk, others_beside
from imagenet_rn50.shards.tar import Buffer, Member, TarError, mapped, walk
from imagenet_rn50.utils.errors import InputError

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def is_official(root: Path) -> bool:
    """Return whether `root` holds the official tars."""
    return any((root / name).is_file() for name in (TRAIN_TAR, VALIDATION_TAR))


def read_official(root: Path, train_only: bool = False) -> Source:
    """List the images of the official tars.

    Args:
        root: The folder that holds the two tars and the development kit.
        train_only: Whether validation is not read.

    Raises:
        InputError: When the kit is missing, a tar is damaged, or they contradict each other.
    """
    names, wnids_of_validation = read_devkit(root / DEVKIT)
    listed: dict[str, list[Listed]] = {}
    unpacked = others_beside(root, root, {TRAIN_TAR, VALIDATION_TAR, DEVKIT})
    if (root / TRAIN_TAR).is_file():
        listed[TRAIN] = _list_train(root / TRAIN_TAR, unpacked)
        _require_same_classes({row.wnid for row in listed[TRAIN]}, set(wnids_of_validation))
    if (root / VALIDATION_TAR).is_file() and train_only:
        unpacked.append(Unpacked("", VALIDATION_TAR, "--train-only"))
    elif (root / VALIDATION_TAR).is_file():
        validation = _list_validation(root / VALIDATION_TAR, wnids_of_validation, unpacked)
        listed[VALIDATION] = validation
    occurring = {row.wnid for row in listed.get(TRAIN, [])} or set(wnids_of_validation)
    if unknown := sorted(occurring - names.keys()):
        raise InputError(f"the development kit does not know the class {unknown[0]}")
    # The kit of 2012 knows the 1,000 classes and 860 of their ancestors.
    wnids = tuple(sorted(occurring))
    classes = Classes(wnids=wnids, names=tuple(names[wnid] for wnid in wnids))
    splits = {name: with_keys(rows, classes) for name, rows in listed.items()}
    return Source(root, "official", classes, splits, unpacked)


def _require_same_classes(found: set[str], expected: set[str]) -> None:
    """Raise an error if a class tar is missing, which would shift the index of later classes."""
    if missing := sorted(expected - found):
        raise InputError(
            f"{TRAIN_TAR} lacks {missing[0]}.tar, the images of a class of the development kit",
            expected=f"the tars of the {len(expected)} classes in {_GROUND_TRUTH}",
            found=f"{len(missing)} missing: {', '.join(missing[:5])}",
            fix="fetch the tar again",
        )


def read_devkit(path: Path) -> tuple[dict[str, str], list[str]]:
    """Read class names and validation ground truth out of the development kit.

    Args:
        path: `ILSVRC2012_devkit_t12.tar.gz`.

    Returns:
        The words of each wnid, and the wnid of each validation image by its number.

    Raises:
        InputError: When the kit is missing or does not hold both.
    """
    if not path.is_file():
        raise InputError(
            f"the official tars have no development kit: {path} is missing",
            expected=f"{DEVKIT}, which says what the validation images show",
            fix="put it beside the tars",
        )
    meta, ground_truth = _members_of(path, (_META, _GROUND_TRUTH))
    wnid_of, names = _synsets(meta, path)
    try:
        ids = [int(line) for line in ground_truth.split()]
        return names, [wnid_of[number] for number in ids]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{_GROUND_TRUTH} in {path} names a class that {_META} lacks", found=str(error)
        ) from None


def _members_of(path: Path, wanted: tuple[str, ...]) -> list[bytes]:
    """Read files out of a tar.gz into memory, by the ends of their names."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for info in tar:
                name = next((name for name in wanted if info.name.endswith(name)), None)
                if name is not None and (file := tar.extractfile(info)) is not None:
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read", found=str(error)) from None
    if missing := [name for name in wanted if name not in found]:
        raise InputError(f"{path} lacks {missing[0]}", fix="fetch the development kit again")
    return [found[name] for name in wanted]


def _synsets(meta: bytes, path: Path) -> tuple[dict[int, str], dict[str, str]]:
    """Read MATLAB's `meta.mat`.

    Returns:
        The wnid by ILSVRC id, and the words by wnid.
    """
    from scipy.io import loadmat  # only this layout needs it

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        rows = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in synsets]
    except (KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"{_META} in {path} cannot be read", found=str(error)) from None
    wnid_of: dict[int, str] = {}
    words_of: dict[str, str] = {}
    for number, wnid, words in rows:
        if number in wnid_of or wnid in words_of:
            raise InputError(
                f"{_META} in {path} names a class twice",
                expected="distinct ILSVRC ids and wnids",
                found=f"id {number}, wnid {wnid}, after id "
                f"{next((n for n, w in wnid_of.items() if w == wnid), number)}, wnid "
                f"{wnid_of.get(number, wnid)}",
                fix="download the development kit again",
            )
        wnid_of[number], words_of[wnid] = wnid, words
    return wnid_of, words_of


def _list_train(path: Path, unpacked: list[Unpacked]) -> list[Listed]:
    """List the images of all class tars within the training tar, by class and name."""
    listed: list[Listed] = []
    seen: set[str] = set()
    with mapped(path) as buffer:
        for class_tar in _files(path, buffer, TRAIN, unpacked):
            name = PurePosixPath(class_tar.name)
            if not WNID.fullmatch(name.stem) or name.suffix != ".tar":
                raise InputError(
                    f"{path} holds {class_tar.name!r}", expected="class tars like n01440764.tar"
                )
            if name.stem in seen:
                raise InputError(f"{path} holds {name.name} twice", fix="fetch the tar again")
            seen.add(name.stem)
            begin, end = class_tar.offset, class_tar.offset + class_tar.size
            listed += [
                Listed(PurePosixPath(m.name).stem, name.stem, path.name, m.offset, m.size)
                for m in _files(path, buffer, TRAIN, unpacked, begin, end)
            ]
    return sorted(listed, key=lambda row: (row.wnid, row.stem))


def _list_validation(path: Path, wnids: list[str], unpacked: list[Unpacked]) -> list[Listed]:
    """List the images of the validation tar; number i has the i-th line of the ground truth."""
    with mapped(path) as buffer:
        members = list(_files(path, buffer, VALIDATION, unpacked))
    members.sort(key=lambda member: member.name)
    if len(members) != len(wnids):
        raise InputError(
            f"{path} and the development kit do not fit together",
            expected=f"{len(wnids)} images, one a line of {_GROUND_TRUTH}",
            found=f"{len(members)} images",
        )
    for line, member in enumerate(members, start=1):
        digits = re.search(r"\d+$", PurePosixPath(member.name).stem)
        if digits and int(digits[0]) != line:
            raise InputError(
                f"{path} holds {member.name!r} as image {line} of the validation images",
                expected=f"number {line}, whose class is in line {line} of {_GROUND_TRUTH}",
                found=f"number {int(digits[0])}",
                fix="download the tar again: its images are not those of the ground truth",
            )
    return [
        Listed(PurePosixPath(m.name).stem, wnid, path.name, m.offset, m.size)
        for m, wnid in zip(members, wnids, strict=True)
    ]


def _files(
    path: Path,
    buffer: Buffer,
    split: str,
    unpacked: list[Unpacked],
    begin: int = 0,
    end: int | None = None,
) -> Iterator[Member]:
    """Yield the members of a tar but for junk, which is noted."""
    for member in _members(path, buffer, begin, end):
        first, last = member.offset, member.offset + member.size
        if is_junk(PurePosixPath(member.name).name) and not is_image(bytes(buffer[first:last])):
            place = readable(f"{path.name}/{member.name}")
            unpacked.append(Unpacked(split, place, JUNK))
        else:
            yield member


def _members(
    path: Path, buffer: Buffer, begin: int = 0, end: int | None = None
) -> Iterator[Member]:
    """Walk through a tar; raise `InputError` if it is damaged."""
    try:
        yield from walk(buffer, begin, end)
    except TarError as error:
        where = "" if begin == 0 else f" (the tar within it at byte {begin})"
        raise InputError(f"{path}{where} {error}", fix=error.fix) from None
