"""The `.eval_results/` folder of an export: results in the format that the Hub reads.

The Hub shows them on the model's page and in the leaderboard of a data set that it lists as a
benchmark. Format: https://huggingface.co/docs/hub/eval-results. An entry names its data set by its
name on the Hub, so only results on verified ImageNet-1k have one. Its `notes` name the file and
field that the value comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from imagenet_rn50.publishing.layout import EVAL_RESULTS, EVALUATION
from imagenet_rn50.publishing.source_files import FieldRef, SourceFiles
from imagenet_rn50.shards.imagenet1k import HUB_NAME
from imagenet_rn50.shards.manifest import VALIDATION
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text, write_text
from imagenet_rn50.utils.parsing import parse_yaml

_TASK = "default"  # a task of the data set's eval.yaml; the documentation's example of its id
_SOURCE = re.compile(r"source: (?P<file>[\w.]+?)(?: line (?P<line>\d+))?, (?P<field>[\w.]+)$")


def write_eval_results(folder: Path, refs: list[FieldRef]) -> None:
    """Write results on ImageNet-1k's validation split, if there are any.

    Args:
        folder: The export.
        refs: Fields with the top-1 accuracies.
    """
    if refs:
        files = SourceFiles(folder)
        (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
        write_text(folder / EVAL_RESULTS, _dump([_entry(files, ref) for ref in refs]))


def add_source(path: Path, hub_id: str) -> None:
    """Add the address of each result's source file to an `.eval_results` file.

    Args:
        path: The file.
        hub_id: Hub id of the model.
    """
    entries = parse_yaml(read_text(path), str(path))
    for entry in entries:
        file = _ref_in(entry).file
        url = f"https://huggingface.co/{hub_id}/blob/main/{file}"
        entry["source"] = {"url": url, "name": file}
    path.write_text(_dump(entries), encoding="utf-8")


def check_eval_results(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the results in `.eval_results/`, compared with their sources.

    Raises:
        InputError: If the file is not YAML.
    """
    path = folder / EVAL_RESULTS
    if not path.is_file():
        return
    files = SourceFiles(folder)
    entries = parse_yaml(read_text(path), str(path))
    for entry in entries if isinstance(entries, list) else [entries]:
        try:
            expected = _entry(files, _ref_in(entry))
        except InputError as error:
            yield str(error)
            continue
        for key in (entry.keys() - {"source"}) | expected.keys():
            if entry.get(key) != expected.get(key):
                yield f"{key} is {entry.get(key)}, but its source has {expected.get(key)}"


def _entry(files: SourceFiles, ref: FieldRef) -> dict[str, Any]:
    """Return the entry of a result.

    Raises:
        InputError: If there is no such field, or its data is not ImageNet-1k's validation split.
    """
    if ref.file == EVALUATION:
        is_imagenet1k = files.evaluated_on_imagenet1k()
        is_imagenet1k &= files.get(FieldRef(EVALUATION, "dataset.split")) == VALIDATION
        date = files.get(FieldRef(EVALUATION, "created"))
    else:
        is_imagenet1k = files.trained_on_imagenet1k(VALIDATION)
        date = files.get(FieldRef(ref.file, "time", ref.line))
    if not is_imagenet1k:
        raise InputError(f"{ref.describe()} is not a result on ImageNet-1k's validation split")
    line = f" line {ref.line}" if ref.line else ""
    entry = EvalResultEntry(
        dataset_id=HUB_NAME,
        task_id=_TASK,
        value=files.value(ref),
        date=date,
        notes=f"top-1 accuracy, {VALIDATION} split; source: {ref.file}{line}, {ref.field}",
    )
    return eval_result_entries_to_yaml([entry])[0]


def _ref_in(entry: Any) -> FieldRef:
    """Return the reference in the notes of an entry.

    Raises:
        InputError: If there is none.
    """
    notes = entry.get("notes") if isinstance(entry, dict) else None
    match = _SOURCE.search(notes) if isinstance(notes, str) else None
    if match is None:
        raise InputError(
            f"a result in {EVAL_RESULTS} has no source",
            expected=f'notes that end with "source: {EVALUATION}, results.0.top1"',
            found=str(entry),
        )
    return FieldRef(match["file"], match["field"], int(match["line"]) if match["line"] else None)


def _dump(entries: list[dict[str, Any]]) -> str:
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=100)
