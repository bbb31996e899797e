"""Make a manifest for WebDataset shards that others have made, by reading them once, anywhere.

`listing` finds the shards, `scanner` reads them, `labels` finds their classes, and the manifest is
written last. Until then `OUT/.indexing` holds what was read (see `indexing_state`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.audit import DATA_NAME, REPORT_NAME
from imagenet_rn50.shards.imagenet1k import dataset_name
from imagenet_rn50.shards.images import TURNED
from imagenet_rn50.shards.indexing_state import FOLDER, IndexingState, commit_of
from imagenet_rn50.shards.labels import MAPPING, Claim, classes_of, log_missing
from imagenet_rn50.shards.listing import (
    SPLITS_OF_INFO,
    FoundShard,
    InfoSplit,
    Listing,
    depth_of,
    find_shards,
    local_files,
    needs_list,
    read_info,
)
from imagenet_rn50.shards.manifest import INFO_NAME, Manifest, timm_info
from imagenet_rn50.shards.pack import write_manifest
from imagenet_rn50.shards.scan import ScannedShard
from imagenet_rn50.shards.scanner import Scanner
from imagenet_rn50.shards.store import DEFAULT_LIMIT_BYTES, CachedShards, location_from
from imagenet_rn50.shards.writer import FOLDER as PACKING_FOLDER
from imagenet_rn50.shards.writer import Note, ShardRecord
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import make_folder, read_json, require_writable
from imagenet_rn50.utils.formatting import counted, quoted, shortened
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.storage import (
    DEFAULT_RETRY_POLICY,
    DeniedError,
    FileInfo,
    MissingFileError,
    RemoteFolder,
    RetryPolicy,
    is_address,
    redact_url,
)

_BESIDE = (INFO_NAME, CLASSES_NAME, MAPPING)
_OURS = frozenset({*_BESIDE, manifests.FILE_NAME, REPORT_NAME, DATA_NAME, FOLDER})
_MAX_SHOWN = 5
_WITHOUT_CLASSES = (
    f"The classes are not known: {CLASSES_NAME} is not written, and training will refuse these "
    f"shards.\nIndex them again with a list of their classes, such as {MAPPING} or another "
    f"{CLASSES_NAME}: --mapping FILE --force"
)
_UNREADABLE = (
    "{number} images are no JPEGs, which training cannot read; "
    "they are listed in {folder}/audit.md.\n"
    "Train with --on-corrupt substitute to do without them, leave them out with --on-corrupt skip, "
    "or convert them: python shard_imagenet.py pack --source {source} --out SHARDS"
)


@dataclass(frozen=True)
class IndexOptions:
    """What to index, and how.

    Args:
        train: Names of the training shards: patterns of paths in the folder; None for those whose
            names say so. See `listing.find_shards`.
        validation: Names of the validation shards.
        label_key: The field of the samples' JSON that holds the label, instead of all other labels.
        on_corrupt: What to do if samples cannot be used: `stop` (nothing is written), or `skip`.
        dataset: The data set's name; None to take it from the shards' names, unless that is
            ImageNet-1k's and the data is not.
        mapping: A list of classes, as `Classes.read` takes it, for the classes' names; None to look
            for `LOC_synset_mapping.txt` or `classes.json` beside the shards, and else to name the
            classes by their wnids.
        force: Whether to overwrite an intact manifest.
        for_packing: Whether the shards are packed anew: images of all formats stay, and what
            hinders only training is not logged.
    """

    train: str | None = None
    validation: str | None = None
    label_key: str | None = None
    on_corrupt: str = "stop"
    dataset: str | None = None
    mapping: Path | None = None
    force: bool = False
    for_packing: bool = False


def index(
    shards: str | Path,
    options: IndexOptions | None = None,
    *,
    out: Path | None = None,
    cache: Path | None = None,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    num_threads: int = 1,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> Manifest:
    """Read shards and write a manifest of them; run it again to resume.

    Args:
        shards: Folder of the shards: a path, or an address. Nothing is written there, unless it is
            the output folder.
        options: What to index, and how.
        out: Output folder of the manifest; None for the folder of the shards.
        cache: Folder that keeps remote shards on this machine, for training; None to keep none.
        limit_bytes: How much space the shards in it may take.
        num_threads: How many shards are read at a time.
        retry_policy: How often downloads are retried.

    Returns:
        The manifest that was written.

    Raises:
        InputError: When there are no shards, or one is missing, damaged, unsafe or without labels;
            or two sources of labels contradict each other; or there is no such mapping.
    """
    options = options or IndexOptions()
    _require_mapping(options.mapping)
    remote = _remote(shards, out, retry_policy) if is_address(shards) else None
    folder = None if remote else Path(shards)
    out = out or Path(shards)
    is_beside = folder is not None and out.resolve() == folder.resolve()
    listing = _list(shards, remote, options)
    if is_beside:
        require_writable(out, fix="give another folder for the manifest: --out DIR")
    else:
        make_folder(out, fix="give another --out")
    location = None if is_beside else remote.location if remote else location_from(out, shards)
    if not is_beside:
        _require_empty(out, cache)
    replaced = _replaced(out, location, options.force)
    state = IndexingState(out)
    with state.locked():
        began = state.adopt({
            "location": location or str(folder), "label_key": options.label_key
        })  # fmt: skip
        beside = folder or _fetch_beside(remote, listing, state)
        info = _info_of(beside, replaced if is_beside else None)
        found = find_shards(listing, train=options.train, validation=options.validation, info=info)
        where = f"{remote.public}/{INFO_NAME}" if remote else str(beside / INFO_NAME)
        _require_label_key(info, found, options.label_key, where)
        if info:
            _require_listed(info, found, where, options)
        scanner = Scanner(state, options.label_key, folder, remote, began)
        if cache and not remote:
            logger.info(f"the shards are on this machine: --cache {cache} is not used")
        if remote and cache:
            scanner.cache = CachedShards(remote, cache, limit_bytes, out)
        scanned = scanner.read_all(found, num_threads)
        if info:
            _require_lengths(info, [shard.record for shard in scanned], where)
        num_skipped = _skip_unusable(scanned, options)
        manifest = _write(
            scanned, out, beside, location, options, found[0].dataset, num_skipped=num_skipped
        )
        state.forget()
    scanner.log_cache(manifest)
    return manifest


def _require_mapping(mapping: Path | None) -> None:
    if mapping is not None and not mapping.is_file():
        raise InputError(
            f"--mapping {mapping} is not a file",
            found="a folder" if mapping.is_dir() else "nothing of that name",
            expected=f"Kaggle's {MAPPING}, or one like it",
        )


def _remote(shards: str | Path, out: Path | None, retry_policy: RetryPolicy) -> RemoteFolder:
    """Return the remote folder of the shards, at its commit.

    Raises:
        InputError: When no output folder is given, or the address holds credentials.
    """
    address = str(shards).rstrip("/")
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            f"the address {redact_url(address)} carries credentials or a query",
            expected="an address without them: the manifest names it for everyone who reads it",
            fix="give credentials by the environment (AWS_PROFILE, HF_TOKEN, `hf auth login`), or "
            "mount or download the shards and index them as a folder",
        )
    if out is None:
        raise InputError(
            f"{address} is remote",
            expected="a local folder for the manifest",
            fix="name one with --out",
        )
    return RemoteFolder(address, retry_policy).at_commit()


def _list(shards: str | Path, remote: RemoteFolder | None, options: IndexOptions) -> Listing:
    """List the files where the shards are.

    Raises:
        InputError: When the folder cannot be listed, or a packing in it is not finished.
    """
    patterns = (options.train, options.validation)
    depth = depth_of(patterns)
    if remote is None:
        folder = Path(shards)
        files = local_files(folder, depth)
        if (folder / PACKING_FOLDER).is_dir() and manifests.FILE_NAME not in files:
            raise InputError(
                f"{folder} holds a packing that is not finished",
                expected="all shards of a data set",
                fix=f"run the same pack command again, or delete {folder / PACKING_FOLDER} to "
                "index only the shards that are there",
            )
        return Listing(str(folder), folder.resolve().name, files)
    place = remote.public
    name = urlsplit(place).path.rstrip("/").rpartition("/")[2].partition("@")[0]
    is_web = urlsplit(place).scheme in {"http", "https"}
    if is_web and not needs_list(patterns):
        return Listing(place, name, None)
    remote_files: dict[str, FileInfo] | None = None
    try:
        remote_files = remote.files(depth)
    except (MissingFileError, DeniedError):
        if not is_web:  # whose files may be read even where the folder is not listed
            raise
    if is_web and not remote_files:
        remote_files = None
    if manifests.FILE_NAME in (remote_files or ()):
        logger.info(
            f"{place} holds a manifest already, which training can use: --shards {quoted(place)}"
        )
    return Listing(place, name or urlsplit(place).netloc, remote_files)


def _require_empty(out: Path, cache: Path | None) -> None:
    """Raise an error if an output folder holds something other than a manifest, or the cache."""
    own = cache.resolve() if cache else None
    others = sorted(
        path.name
        for path in out.iterdir()
        if path.name not in _OURS
        and not path.name.startswith("manifest-")
        and not (own and own.is_relative_to(path.resolve()))
    )
    if others:
        raise InputError(
            f"{out} is not empty",
            expected="a new or empty folder, or one with a manifest of these shards",
            found=shortened(others),
            fix="give another --out",
        )


def _replaced(out: Path, location: str | None, force: bool) -> Manifest | None:
    """Return the manifest that is to be replaced; None without one, or where it is damaged.

    Raises:
        InputError: When it may not be replaced.
    """
    replaced = None
    with suppress(InputError):
        replaced = Manifest.load(out)
    if replaced is None or force:
        return replaced
    old, new = commit_of(replaced.location), commit_of(location)
    if old and new and old != new:
        raise InputError(
            f"{out} holds a manifest of another commit",
            expected=f"commit {old}",
            found=f"commit {new}: the revision moved",
            fix=f"keep the first by its address, {replaced.location}; or write the manifest anew: "
            "--force",
        )
    raise InputError(
        f"{out} holds a manifest already",
        expected="a folder without one",
        fix=f"compare the shards with it (python shard_imagenet.py verify --shards {quoted(out)}), "
        "or write it anew from what they hold now: --force",
    )


def _fetch_beside(remote: RemoteFolder | None, listing: Listing, state: IndexingState) -> Path:
    """Download `_info.json`, `classes.json` and the mapping, where they are; return their folder.

    Raises:
        InputError: When one is there and cannot be downloaded.
    """
    assert remote is not None
    folder = state.source
    folder.mkdir(exist_ok=True)
    for name in _BESIDE:
        (folder / name).unlink(missing_ok=True)
        if listing.files is not None and name not in listing.files:
            continue
        try:
            remote.download(name, folder / name, is_json=name.endswith(".json"))
        except (MissingFileError, DeniedError):
            if listing.files is not None:  # else nobody says that it is there
                raise
    return folder


def _info_of(folder: Path, replaced: Manifest | None) -> dict[str, InfoSplit] | None:
    """Return what `_info.json` says; None without one.

    One that was written with the manifest that is to be replaced only says which shards may not be
    missing: others may have been added or changed since.
    """
    path = folder / INFO_NAME
    if not path.is_file():
        return None
    info = read_info(path)
    if replaced is None or read_json(path) != timm_info(replaced):
        return info
    for split in info.values():
        for name in split.lengths:
            if not (folder / name).is_file():
                raise InputError(
                    f"{path} lists shards that are not there, such as {name}",
                    expected=f"{sum(len(split.lengths) for split in info.values())} shards",
                    fix=f"copy it back, or move {path} elsewhere to index only what is there",
                )
    return None


def _require_label_key(
    info: Mapping[str, InfoSplit] | None,
    found: Sequence[FoundShard],
    label_key: str | None,
    where: str,
) -> None:
    """Raise an error if `_info.json` takes the labels from a field, and no field is given."""
    if label_key is not None:
        return
    names = {shard.name for shard in found}
    for split_name, split in (info or {}).items():
        if split.alt_label and names & split.lengths.keys():
            raise InputError(
                f"{where} takes the labels of {split_name} from the JSON field {split.alt_label!r}",
                expected="labels in .cls, or in the JSON field 'label'",
                fix=f"read them from there: --label-key {split.alt_label}",
            )


def _require_listed(
    info: Mapping[str, InfoSplit],
    found: Sequence[FoundShard],
    where: str,
    options: IndexOptions,
) -> None:
    """Raise an error if `_info.json` lists other shards than there are.

    Args:
        info: Its content.
        found: The shards; with patterns, it may list more.
        where: The file as messages name it.
        options: With the patterns.

    Raises:
        InputError: When a shard is missing, or not listed.
    """
    listed = {name for split in info.values() for name in split.lengths}
    others = {
        n for name, split in info.items() if name not in SPLITS_OF_INFO for n in split.lengths
    }
    names = {shard.name for shard in found}
    fix = f"complete the shards; or remove {where} if it is not theirs"
    is_part = bool(options.train or options.validation)
    if not is_part and (missing := sorted(listed - others - names)):
        raise InputError(
            f"{where} lists {len(missing)} shards that are not there, such as {missing[0]}",
            expected=f"{len(listed - others)} shards",
            found=f"{len(names)} shards",
            fix=f"{fix}; or name the shards to index with --train and --validation",
        )
    if surplus := sorted(names - listed):
        raise InputError(
            f"{surplus[0]} is not as {where} describes it",
            expected="only shards it lists",
            found=f"{counted(len(surplus), 'shard')} that it does not list",
            fix=fix,
        )


def _require_lengths(
    info: Mapping[str, InfoSplit], records: Sequence[ShardRecord], where: str
) -> None:
    """Raise an error if `_info.json` gives a shard another number of samples than it has.

    Samples that cannot be used count.

    Raises:
        InputError: Naming the first such shard.
    """
    lengths = {name: count for split in info.values() for name, count in split.lengths.items()}
    for record in records:
        count = len(record.rows) + len(record.skipped)
        if count != lengths[record.shard.name]:
            raise InputError(
                f"{record.shard.name} is not as {where} describes it",
                expected=f"{lengths[record.shard.name]} samples",
                found=f"{count} samples",
                fix=f"download the shard again, or remove {where} if it is not of these shards",
            )


def _skip_unusable(scanned: list[ScannedShard], options: IndexOptions) -> int:
    """Leave out what cannot be used, and for training images that are no JPEGs; return how many.

    Raises:
        InputError: When there is something, and it may not be left out.
    """
    unusable = [note for shard in scanned for note in shard.record.skipped]
    if unusable and options.on_corrupt != "skip":
        shown = "; ".join(
            f"the sample {note.key!r} in {note.path} {note.reason}"
            for note in unusable[:_MAX_SHOWN]
        )
        raise InputError(
            f"samples of the shards cannot be used: {len(unusable):,}",
            expected="an image, and a class index, 0 or more, or a wnid, for each sample",
            found=shown + "; ..." * (len(unusable) > _MAX_SHOWN),
            fix="name the JSON field of the labels if there is one (--label-key FIELD); or leave "
            "the samples out of the manifest: --on-corrupt skip",
        )
    if options.on_corrupt == "skip" and not options.for_packing:
        for shard in scanned:
            _skip_other_formats(shard)
    for split in dict.fromkeys(shard.record.split for shard in scanned):
        chosen = [shard.record for shard in scanned if shard.record.split == split]
        if not any(record.rows for record in chosen):
            raise InputError(
                f"the {split} shards have no sample that can be used",
                expected="at least one",
                found=f"{sum(len(record.skipped) for record in chosen)} that cannot",
            )
    return sum(len(shard.record.skipped) for shard in scanned)


def _skip_other_formats(shard: ScannedShard) -> None:
    """Move the images that are no JPEGs to what is skipped."""
    record = shard.record
    others = {note.key: note for note in record.changed if TURNED not in note.reason}
    if not others:
        return
    kept = [number for number, row in enumerate(record.rows) if row.key not in others]
    record.rows = [record.rows[number] for number in kept]
    shard.claims = [shard.claims[number] for number in kept]
    record.changed = [note for note in record.changed if note.key not in others]
    record.skipped += [
        note._replace(reason=note.reason.removeprefix("not changed, but "))
        for note in others.values()
    ]
    record.shard = manifests.Shard(
        record.shard.name, len(kept), record.shard.num_bytes, record.shard.sha256
    )


def _write(
    scanned: list[ScannedShard],
    out: Path,
    beside: Path,
    location: str | None,
    options: IndexOptions,
    default_name: str,
    *,
    num_skipped: int,
) -> Manifest:
    """Find the classes, fill in the labels, and write the manifest.

    Raises:
        InputError: When two sources contradict each other.
    """
    records = [shard.record for shard in scanned]
    _require_distinct_keys(records)
    if options.label_key is not None:
        _settle_claims(scanned, options)
    seen = _first_claims(scanned)
    classes = classes_of(beside, options.mapping, seen)
    index_of = {wnid: label for each in seen.values() for label, wnid in each if label is not None}
    index_of.update({} if classes is None else classes.index_of)
    for shard in scanned:
        _fill_labels(shard, index_of)
    if not options.for_packing:
        _log_classes(records, classes, out)
    num_images: Counter[str] = Counter()
    for record in records:
        num_images[record.split] += len(record.rows)
    recorded: dict[str, Any] = {"indexed": True}
    for name in ("train", "validation", "label_key"):
        if (value := getattr(options, name)) is not None:
            recorded[name] = value
    if num_skipped:
        recorded["num_skipped"] = num_skipped
        if not options.for_packing:
            logger.info(f"{num_skipped:,} samples are left out; {out / REPORT_NAME} lists them")
    return write_manifest(
        records,
        out,
        dataset=dataset_name(options.dataset, default_name, classes, num_images),
        options=recorded,
        classes=classes,
        location=location,
    )


def _log_classes(records: list[ShardRecord], classes: Classes | None, out: Path) -> None:
    """Log what training needs to know of images and classes."""
    notes: list[Note] = [note for record in records for note in record.changed]
    if unreadable := sum(TURNED not in note.reason for note in notes):
        logger.info(_UNREADABLE.format(number=unreadable, folder=out, source=quoted(out)))
    if classes is None:
        logger.info(_WITHOUT_CLASSES)
        return
    labels_of: dict[str, set[int]] = {}
    for record in records:
        labels_of.setdefault(record.split, set()).update(row.label for row in record.rows)
    log_missing(classes, labels_of)


def _settle_claims(scanned: list[ScannedShard], options: IndexOptions) -> None:
    """Decide what the labels in the chosen JSON field and the wnids in keys mean together.

    Indices that are not the ranks of the wnids in the keys count other classes than these: the
    field was chosen, so the wnids are dropped. Names become wnids where the mapping names them.

    Raises:
        InputError: When the field holds indices in some samples and names in others.
    """
    claims = {claim for shard in scanned for claim in shard.claims}
    kinds = {claim.label is None for claim in claims}
    if len(kinds) > 1:
        raise InputError(
            f"the JSON field {options.label_key!r} holds numbers in some samples, names in others",
            expected="class indices in all samples, or class names in all",
        )
    translate: dict[Claim, Claim] = {}
    if kinds == {True} and options.mapping is not None:
        classes = Classes.read(options.mapping)
        wnid_of = dict(zip(classes.labels, classes.wnids, strict=True))
        translate = {
            claim: Claim(None, wnid_of.get(claim.wnid or "", claim.wnid)) for claim in claims
        }
    elif kinds == {False} and not _are_ranks(claims):
        logger.info(
            f"the labels in the JSON field {options.label_key!r} are not the ranks of the wnids in "
            "the samples' keys: the field decides, and the wnids are not used"
        )
        translate = {claim: Claim(claim.label, None) for claim in claims}
    for shard in scanned:
        shard.claims = [translate.get(claim, claim) for claim in shard.claims]


def _are_ranks(claims: set[Claim]) -> bool:
    """Return whether class indices and wnids go together one to one, and rise together."""
    pairs = sorted(
        (claim.label, claim.wnid)
        for claim in claims
        if claim.label is not None and claim.wnid is not None
    )
    wnids = [wnid for _, wnid in pairs]
    return len(dict(pairs)) == len(pairs) == len(set(wnids)) and wnids == sorted(wnids)


def _first_claims(shards: list[ScannedShard]) -> dict[str, dict[Claim, str]]:
    """Return the distinct claims of each split, and the first sample that makes each."""
    seen: dict[str, dict[Claim, str]] = {}
    for shard in shards:
        of_split = seen.setdefault(shard.record.split, {})
        for claim, row in zip(shard.claims, shard.record.rows, strict=True):
            if claim not in of_split:
                of_split[claim] = f"the sample {row.key!r} in {shard.record.shard.name}"
    return seen


def _fill_labels(shard: ScannedShard, index_of: Mapping[str | None, int]) -> None:
    """Fill in the class index of samples that give only a wnid."""
    record = shard.record
    record.rows = [
        row._replace(label=index_of[claim.wnid]) if claim.label is None else row
        for row, claim in zip(record.rows, shard.claims, strict=True)
    ]
    label_of = {row.key: row.label for row in record.rows}
    record.changed = [note._replace(label=label_of[note.key]) for note in record.changed]


def _require_distinct_keys(records: list[ShardRecord]) -> None:
    """Raise an error if two samples of a split share a key."""
    seen: dict[tuple[str, str], str] = {}
    for record in records:
        for row in record.rows:
            place = record.split, row.key
            if place in seen:
                raise InputError(
                    f"the key {row.key!r} is in {seen[place]} and again in {record.shard.name}",
                    expected="each sample once",
                )
            seen[place] = record.shard.name
