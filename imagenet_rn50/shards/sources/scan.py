"""List folders: every file under a class folder is an image to pack, or is counted and named.

Which files are images is decided by their content, when they are packed. Their names count only for
what operating systems and tools leave behind (`JUNK_FILES`, `JUNK_FOLDERS`).
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imagenet_rn50.classes import WNID
from imagenet_rn50.shards.formats import has_image_suffix, is_image
from imagenet_rn50.shards.sources.base import SourceImage, Unpacked, readable
from imagenet_rn50.utils.errors import InputError

JUNK_FILES = (
    ".ds_store",
    "._*",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    ".directory",
    ".gitkeep",
    ".gitignore",
)
JUNK_FOLDERS = (
    "__macosx",
    ".ipynb_checkpoints",
    "__pycache__",
    "@eadir",
    ".appledouble",
    ".git",
    ".trash*",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
_ARCHIVES = ("tar", "tar.gz", "tgz", "zip")
JUNK = "left behind by a system or a tool"
OTHER_SPLITS = ("test", "testing", "dev", "eval", "evaluation", "holdout")
"""Names of folders, in lower case, that are splits, but neither for training nor validation."""
TEST_REASON = "a test split, which is neither trained on nor validated on"
_OTHER_SPLIT = "named as a split that is neither train/ nor val/"


class File(NamedTuple):
    """A regular file: its path relative to the source's folder, and its size in bytes."""

    path: str
    size: int


@dataclass
class Scan:
    """What a folder of class folders holds.

    Args:
        classes: The files below each class folder, by the class: the folder's name, in Unicode's
            composed form (macOS writes names decomposed, which would sort elsewhere).
        folder_of: The name of each class's folder as the file system has it.
        loose: Files beside the class folders.
        unpacked: What is set aside or cannot be read.
    """

    classes: dict[str, list[File]] = field(default_factory=dict)
    folder_of: dict[str, str] = field(default_factory=dict)
    loose: list[File] = field(default_factory=list)
    unpacked: list[Unpacked] = field(default_factory=list)


def is_junk(name: str, patterns: Collection[str] = JUNK_FILES) -> bool:
    """Return whether a file of this name is left behind by a system or a tool."""
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or leads to one; not if it is a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a regular file or leads to one; not if it is a link to itself."""
    try:
        return entry.is_file()
    except OSError:
        return False


def entries_of(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name.

    Raises:
        InputError: When it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"the folder {readable(str(folder))} cannot be read", found=error.strerror
        ) from None


def scan(root: Path, folder: Path, split: str) -> Scan:
    """List the class folders in `folder`, and all files below each.

    Args:
        root: The source's folder, which paths are relative to.
        folder: Holds one folder per class.
        split: The split that `folder` is of, for the audit.

    Raises:
        InputError: When a folder cannot be read, or two folders are of the same class.
    """
    found = Scan()
    walk = _Walk(root, folder, split, found.unpacked)
    for entry in entries_of(folder):
        if not is_folder(entry):
            found.loose += walk.file(entry)
        elif not walk.is_set_aside(entry) and not walk.is_hidden(entry):
            name = unicodedata.normalize("NFC", entry.name)
            if name in found.classes:
                raise InputError(
                    f"{readable(str(folder))} has two folders of the class {readable(name)}, whose "
                    "names differ only in their Unicode form",
                    expected="one folder per class",
                    found=f"{ascii(found.folder_of[name])} and {ascii(entry.name)}",
                    fix="move the images of both into one folder",
                )
            found.classes[name] = list(walk.files(entry.path, (_identity(folder),)))
            found.folder_of[name] = entry.name
    return found


def without_class(root: Path, found: Scan, loose: Sequence[File], split: str) -> list[Unpacked]:
    """Return why files beside class folders are not packed.

    Args:
        root: The source's folder.
        found: The class folders.
        loose: The files beside them.
        split: What they belong to, for the audit.
    """
    unpacked = []
    for file in loose:
        stem, _, suffix = PurePosixPath(file.path).name.partition(".")
        if WNID.fullmatch(stem) and suffix in _ARCHIVES and stem not in found.classes:
            reason, is_error = "the archive of a class that has no folder", True
        elif is_image(root / file.path):
            reason, is_error = "an image beside the folders of classes, so of no class", True
        else:
            reason, is_error = "no image, and beside the folders of classes", False
        unpacked.append(Unpacked(split, readable(file.path), reason, is_error=is_error))
    return unpacked


def unusable(
    root: Path, images: Collection[SourceImage], unpacked: Collection[Unpacked]
) -> list[str]:
    """Return the files that are seen not to be images before all are decoded, with the reason.

    Files that are named as images are not looked into.
    """
    return [f"{entry.path} ({entry.reason})" for entry in unpacked if entry.is_error] + [
        f"{readable(image.path)} (no image)"
        for image in images
        if not has_image_suffix(image.path) and not is_image(root / image.path)
    ]


def others_beside(root: Path, folder: Path, taken: Collection[str]) -> list[Unpacked]:
    """Count what a folder holds beside what is packed from it, one entry per name.

    Args:
        root: The source's folder, which paths are relative to.
        folder: The folder.
        taken: The names in it that are packed or read.
    """
    prefix = folder.relative_to(root)
    return [
        Unpacked(
            "",
            readable((prefix / entry.name).as_posix()) + "/" * is_folder(entry),
            reason_of(entry.name),
            _count(entry),
        )
        for entry in entries_of(folder)
        if entry.name not in taken
    ]


def reason_of(name: str) -> str:
    """Return why a file or folder of this name beside the splits is not packed."""
    if is_junk(name, (*JUNK_FILES, *JUNK_FOLDERS)):
        return JUNK
    if "test" in PurePosixPath(name).stem.lower().replace("-", "_").split("_"):
        return TEST_REASON
    if name.rstrip("/").lower() in OTHER_SPLITS:
        return _OTHER_SPLIT
    return "no part of the layout"


def _count(entry: os.DirEntry[str]) -> int:
    if not is_folder(entry):
        return 1
    return sum(len(names) for _, _, names in os.walk(entry.path))


class _Walk:
    """Walk through the folders of a split, and notes what is no file to pack."""

    def __init__(self, root: Path, folder: Path, split: str, unpacked: list[Unpacked]) -> None:
        self._root = root
        # A `Path` per file would take longer than listing it.
        self._skipped = len(str(folder).rstrip("/")) + 1
        self._prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        self._split = split
        self._unpacked = unpacked

    def files(self, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[File]:
        """Yield all files below a folder, by name; `above` identifies the folders over it."""
        identity = _identity(folder)
        if identity in above:
            self._note(f"{folder}/", "a link to a folder above it", is_error=True)
            return
        for entry in entries_of(folder):
            if not is_folder(entry):
                yield from self.file(entry)
            elif not self.is_set_aside(entry):
                yield from self.files(entry.path, (*above, identity))

    def file(self, entry: os.DirEntry[str]) -> Iterator[File]:
        """Yield a file, unless it is junk or cannot be read."""
        try:
            status = entry.stat()
        except OSError as error:
            reason = "a link that leads nowhere" if entry.is_symlink() else str(error.strerror)
            self._note(entry.path, reason, is_error=True)
            return
        if not stat.S_ISREG(status.st_mode):
            self._note(entry.path, "not a regular file", is_error=True)
        elif is_junk(entry.name) and not is_image(entry.path):
            self._note(entry.path, JUNK)
        else:
            yield File(self._relative(entry.path), status.st_size)

    def is_set_aside(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a system or a tool left a folder behind, and note it."""
        if not is_junk(entry.name, JUNK_FOLDERS):
            return False
        self._note(f"{entry.path}/", JUNK, _count(entry))
        return True

    def is_hidden(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder beside class folders is hidden, and so no class, and note it."""
        if not entry.name.startswith("."):
            return False
        files = list(self.files(entry.path, ()))
        has_images = any(is_image(self._root / file.path) for file in files)
        self._note(f"{entry.path}/", "a hidden folder", len(files), is_error=has_images)
        return True

    def _relative(self, path: str) -> str:
        return self._prefix + path[self._skipped :]

    def _note(self, path: str, reason: str, num_files: int = 1, *, is_error: bool = False) -> None:
        shown = readable(self._relative(path))
        self._unpacked.append(Unpacked(self._split, shown, reason, num_files, is_error))


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
