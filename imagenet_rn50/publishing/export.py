"""Export: from a run, or from weights of others, to a folder that needs none of our code.

OUT/
  config.json  preprocessor_config.json      architecture, classes; what is done to a picture
  model.safetensors                          or resnet50.safetensors, or model.onnx
  README.md                                  the card
  metrics.jsonl  recipe.yaml  plots/  ...    what the card's numbers come from
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.classes import Classes
from imagenet_rn50.data.reader import ShardStore
from imagenet_rn50.evaluation.load_model import check_classes
from imagenet_rn50.model import weights_digest
from imagenet_rn50.pretrained import Kind
from imagenet_rn50.publishing.formats import (
    Dtype,
    compare_logits,
    compare_on_shards,
    converted,
    require_format,
    tolerance,
    write_model,
)
from imagenet_rn50.publishing.layout import (
    ASSUMED_ARCHITECTURE,
    CARD,
    CONFIG,
    EVALUATION,
    EXAMPLES,
    ORIGIN,
    is_of_export,
)
from imagenet_rn50.publishing.model_card import CardInfo, model_card
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.publishing.snippets import Format
from imagenet_rn50.publishing.source import Source, source_of_run, source_of_weights
from imagenet_rn50.runs.checkpoint import Weights, Which
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import (
    TEMPORARY_SUFFIX,
    read_json,
    replace_folder,
    require_free_space,
    require_writable,
    write_bytes,
    write_json,
    write_text,
)
from imagenet_rn50.utils.logging import logger

_SCHEMA = 1  # of metrics.json


@dataclass(frozen=True)
class Wanted:
    """What an export shall be.

    Attributes:
        form: Format of the weights.
        dtype: Type of the weights.
        shards: Pictures to compare on, besides random ones; None for none.
        metrics: metrics.json of `evaluate`, for the card; None for that of the run, if any.
    """

    form: Format = "transformers"
    dtype: Dtype = "float32"
    shards: ShardStore | None = None
    metrics: Path | None = None


def export(
    run: Path,
    out: Path,
    *,
    checkpoint: Which = "best",
    weights: Weights = "auto",
    wanted: Wanted = Wanted(),
) -> None:
    """Write a model of a run as others load it, and loads it back to compare.

    Args:
        run: The run folder.
        out: The new folder; an earlier export that stands there is replaced, nothing else.
        checkpoint: The one with the best validation top-1, or the newest.
        weights: Averaged, raw, or whichever scored better there.
        wanted: Format and type of the weights, and what to compare on.

    Raises:
        InputError: If there is no such run or checkpoint, or `out` holds something else.
        RuntimeError: If the exported model does not compute what the trained one does, or a
            number in its card has no source.
    """
    _write(source_of_run(run, checkpoint, weights, wanted.metrics), out, wanted)


def convert(
    weights: str,
    out: Path,
    *,
    classes: Path | None = None,
    sizes: Mapping[str, int] | None = None,
    kind: Kind | None = None,
    arch: str | None = None,
    wanted: Wanted = Wanted(),
) -> None:
    """Write weights of others as an exported folder: torchvision's, timm's, or of the Hub.

    Args:
        weights: As `read_pretrained` takes them.
        out: The new folder; an earlier export that stands there is replaced, nothing else.
        classes: Lists the model's classes, as `Classes.read` takes it; None for those of its
            configuration, or of ImageNet where it has a thousand.
        sizes: `eval_resize` and `eval_size`, px, where they are to be others than its
            configuration says.
        kind: Averaged or raw weights, where the file holds both.
        arch: Name of the architecture in timm, where nothing else declares one.
        wanted: Format and type of the weights, and what to compare on.

    Raises:
        InputError: If the weights cannot be read, belong to another architecture, or their
            classes or processor are not known.
        RuntimeError: If the exported model does not compute what the original does.
    """
    source = source_of_weights(weights, classes, sizes or {}, wanted.metrics, kind=kind, arch=arch)
    _write(source, out, wanted)


def _write(source: Source, out: Path, wanted: Wanted) -> None:
    """Write an export under a temporary name, checks it, and gives it its name."""
    require_format(source.model, source.processor, wanted.form, wanted.dtype)
    if wanted.shards:
        where = wanted.shards.folder
        labels = list((source.model.config.id2label or {}).values())
        check_classes("the model", labels, str(where), Classes.load(where))
    _require_replaceable(out)
    size = sum(tensor.nbytes for tensor in source.model.state_dict().values())
    require_free_space(out, size, "the exported model")
    final = Path(os.path.realpath(out))  # unlike resolve(), it takes a loop of links
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        told = _fill(source, temporary, wanted)
        if (final / EXAMPLES).is_dir():
            shutil.copytree(final / EXAMPLES, temporary / EXAMPLES)
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info(f"exported {source.described} to {out}: {told}")


def _require_replaceable(out: Path) -> None:
    """Check that nothing but an earlier export would be replaced.

    Raises:
        InputError: If something else stands there, or nothing can be written there.
    """
    fix = "name another folder with --out"
    require_writable(out.absolute().parent, fix)
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a folder", expected="a new or empty one", fix=fix)
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(f"{out} would be replaced while this stands in it", fix=fix)
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    others = sorted(name for name in names if not is_of_export(name))
    if others or (names and CONFIG not in names):
        raise InputError(
            f"{out} holds something else than an exported model",
            expected="a new or empty folder, or one with an earlier export and nothing more",
            found=", ".join(others[:5]) or f"no {CONFIG}",
            fix="move that away, or " + fix,
        )


def _fill(source: Source, folder: Path, wanted: Wanted) -> str:
    """Write all files of an export and checks them.

    Returns:
        What was found, for the last line that is said.

    Raises:
        RuntimeError: If something in it is not as it should be.
    """
    model = source.model.eval()
    written = converted(model, wanted.dtype)
    exported = write_model(written, folder, wanted.form)
    source.processor.save_pretrained(folder)
    _copy_evidence(source, folder)
    _check_evaluation(folder, weights_digest(written.float()), insist=wanted.metrics is not None)
    info = CardInfo(source.name, wanted.form, wanted.dtype, source.choice)
    write_text(folder / CARD, model_card(folder, info))
    if problems := unsourced_numbers(folder):
        raise RuntimeError("the card has numbers without a source: " + "; ".join(problems))

    allowed = tolerance(wanted.form, wanted.dtype)
    original = source.reference or model
    difference = compare_logits(original, exported, source.data.eval_size, allowed)
    told = f"it computes the logits of {_reference(source)}, within {difference:.1g} of the largest"
    if wanted.shards is None:
        return f"{told} (not compared on pictures: no --shards)"
    same, compared = compare_on_shards(original, exported, wanted.shards, source.data, allowed)
    return f"{told}, and names the same class first for {same} of {compared} pictures"


def _reference(source: Source) -> str:
    """Return what an export was compared with, and claim no more."""
    if source.origin is None:
        return "the trained model"
    if source.reference is None:
        return "the architecture assumed, which no model of another library could confirm"
    return str(source.origin.declared)


def _copy_evidence(source: Source, folder: Path) -> None:
    """Copy what the card's numbers come from.

    Raises:
        InputError: If a file is missing.
    """
    for name, path in source.evidence.items():
        if not path.is_file():
            raise InputError(f"there is no file {path}", expected=f"a {name}, for the card")
        (folder / name).parent.mkdir(exist_ok=True)
        write_bytes(folder / name, path.read_bytes())
    if source.classes:
        source.classes.save(folder)
    if source.origin:
        declared = source.origin.declared
        origin = {
            "name": source.origin.name,
            "sha256": source.origin.sha256,
            "weights": source.origin.kind,
            "architecture": declared.name if declared else ASSUMED_ARCHITECTURE,
        }
        write_json(folder / ORIGIN, origin)


def _check_evaluation(folder: Path, weights: str, *, insist: bool) -> None:
    """Check that metrics.json speaks of these very weights.

    Args:
        folder: Where it was copied to, if there is one.
        weights: Digest of what is exported.
        insist: Whether it was asked for, or else found in the run, and left out when it does not.

    Raises:
        InputError: If it does not.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return
    content = read_json(path)
    is_known = isinstance(content, dict) and content.get("schema") == _SCHEMA
    dataset = content.get("dataset") if is_known else None
    if not isinstance(dataset, dict) or not {"name", "split"} <= dataset.keys():
        raise InputError(
            "that metrics.json was not written by evaluate",
            expected=f'{{"schema": {_SCHEMA}, "dataset": {{...}}, "results": [...]}}',
            fix="python -m imagenet_rn50 evaluate --model MODEL --shards SHARDS --out FOLDER",
        )
    measured = content.get("checkpoint", {}).get("weights_sha256", weights)
    if measured == weights:
        # Folders of this machine are nobody else's business.
        write_json(path, content | {"model": Path(content["model"]).name})
        return
    if insist:
        raise InputError(
            "that metrics.json speaks of other weights",
            expected=f"weights_sha256 {weights}",
            found=str(measured),
            fix="evaluate the exported folder, and export again with its metrics.json",
        )
    logger.info("the run's metrics.json speaks of other weights: it is left out of the card")
    path.unlink()
