"""Export a run, or pretrained weights, to a folder that needs nothing of this package.

OUT/
  config.json  preprocessor_config.json      architecture and classes; image preprocessing
  model.safetensors                          or resnet50.safetensors, or onnx/model.onnx
  onnx/                                      models for browsers, with --web; see onnx_models
  README.md  .eval_results/                  the model card; its result on ImageNet-1k, for the Hub
  metrics.jsonl  recipe.yaml  plots/  ...    what the card's numbers come from
  calibration.json                           when the Space calls an image unfamiliar
  examples.json  examples/                   validation images for the Space
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.classes import Classes
from imagenet_rn50.evaluation.load_model import check_classes
from imagenet_rn50.model import weights_digest
from imagenet_rn50.pretrained import Kind
from imagenet_rn50.publishing.calibration import write_calibration
from imagenet_rn50.publishing.card_metadata import leaderboard_refs
from imagenet_rn50.publishing.eval_results import write_eval_results
from imagenet_rn50.publishing.examples import (
    copy_added_examples,
    num_examples,
    write_examples,
)
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
    CALIBRATION,
    CARD,
    CONFIG,
    EVALUATION,
    EXAMPLES,
    ORIGIN,
    SHARDS,
    STATS,
    is_of_export,
)
from imagenet_rn50.publishing.model_card import model_card
from imagenet_rn50.publishing.model_stats import model_stats
from imagenet_rn50.publishing.onnx_models import Logits, require_web, write_web_models
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.publishing.snippets import Format
from imagenet_rn50.publishing.source import Source, source_of_run, source_of_weights
from imagenet_rn50.publishing.source_files import CardInfo, SourceFiles
from imagenet_rn50.publishing.validation_images import ValidationImages
from imagenet_rn50.publishing.web import require_web_models
from imagenet_rn50.runs.checkpoint import Weights, Which
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError, first_line, require_at_least
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
class ExportOptions:
    """Options of an export.

    Attributes:
        form: Format of the weights.
        dtype: Data type of the weights.
        shards: Images to compare logits on, in addition to random ones.
        metrics: metrics.json of `evaluate`, for the card; None uses that of the run, if any.
        web: Whether to add ONNX models for browsers, which needs `shards`.
        examples: Number of validation images to add as examples for the Space; None for 6, if
            there are any and they may be published.
    """

    form: Format = "transformers"
    dtype: Dtype = "float32"
    shards: ShardStore | None = None
    metrics: Path | None = None
    web: bool = False
    examples: int | None = None


def export(
    run: Path,
    out: Path,
    *,
    checkpoint: Which = "best",
    weights: Weights = "auto",
    options: ExportOptions = ExportOptions(),
) -> None:
    """Export a model of a run, load it back and compare its logits.

    Args:
        run: The run directory.
        out: The new folder; an earlier export there is replaced, anything else is an error.
        checkpoint: Best validation top-1, or newest.
        weights: Averaged (EMA), raw, or whichever scored better.
        options: Options of the export.

    Raises:
        InputError: If there is no such run or checkpoint, or `out` holds something else.
        RuntimeError: If the logits differ, or a number in the card has no source.
    """
    _write(source_of_run(run, checkpoint, weights, options.metrics), out, options)


def convert(
    weights: str,
    out: Path,
    *,
    classes: Path | None = None,
    sizes: Mapping[str, int] | None = None,
    kind: Kind | None = None,
    arch: str | None = None,
    options: ExportOptions = ExportOptions(),
) -> None:
    """Export pretrained weights of torchvision, timm or the Hub.

    Args:
        weights: See `read_pretrained`.
        out: The new folder; an earlier export there is replaced, anything else is an error.
        classes: List of classes, see `Classes.read`; None uses those of the configuration, or
            ImageNet's for 1,000 classes.
        sizes: `eval_resize` and `eval_size`, px, to override those of the configuration.
        kind: Averaged or raw weights, if the file holds both.
        arch: Name of the architecture in timm, if nothing else declares one.
        options: Options of the export.

    Raises:
        InputError: If the weights cannot be read, do not fit the declared architecture, or have
            unknown classes or preprocessing.
        RuntimeError: If the logits differ, or a number in the card has no source.
    """
    source = source_of_weights(weights, classes, sizes or {}, options.metrics, kind=kind, arch=arch)
    _write(source, out, options)


def _write(source: Source, out: Path, options: ExportOptions) -> None:
    """Write an export under a temporary name, check it, and rename it."""
    require_format(source.model, source.processor, options.form, options.dtype)
    if options.web:
        require_web(options.shards, options.dtype)
    require_at_least("--examples", options.examples or 0, 0)
    if options.shards:
        where = options.shards.folder
        labels = list((source.model.config.id2label or {}).values())
        check_classes("the model", labels, str(where), Classes.load(where))
    _require_replaceable(out)
    size = sum(tensor.nbytes for tensor in source.model.state_dict().values())
    require_free_space(out, size, "the exported model")
    final = Path(os.path.realpath(out))  # unlike resolve(), accepts a loop of links
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        result = _fill(source, temporary, options)
        copy_added_examples(final, temporary)
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info(f"exported {source.location} to {out}: {result}")


def _require_replaceable(out: Path) -> None:
    """Check that `out` is new, empty or an earlier export.

    Raises:
        InputError: If it holds something else, or is not writable.
    """
    fix = "pass another folder as --out"
    require_writable(out.absolute().parent, fix)
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a folder", expected="a new or empty one", fix=fix)
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(
            f"{out} is the current folder, or a parent of it, and cannot be replaced", fix=fix
        )
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    others = sorted(name for name in names if not is_of_export(name))
    if others or (names and CONFIG not in names):
        raise InputError(
            f"{out} holds something other than an exported model",
            expected="a new or empty folder, or one that holds an earlier export only",
            found=", ".join(others[:5]) or f"no {CONFIG}",
            fix="move that away, or " + fix,
        )


def _fill(source: Source, folder: Path, options: ExportOptions) -> str:
    """Write all files of an export and check them.

    Returns:
        How its logits compare, for the log.

    Raises:
        RuntimeError: If the logits differ, or a number in the card has no source.
    """
    model = source.model.eval()
    written = converted(model, options.dtype)
    exported = write_model(written, folder, options.form)
    source.processor.save_pretrained(folder)
    _copy_sources(source, folder)
    _check_evaluation(folder, weights_digest(written.float()), required=options.metrics is not None)
    _add_validation_images(source, exported, folder, options)
    write_json(folder / STATS, model_stats(model.config, source.data.eval_size))

    allowed = tolerance(options.form, options.dtype)
    original = source.reference or model
    difference = compare_logits(original, exported, source.data.eval_size, allowed)
    result = f"logits agree with {_reference(source)} within {difference:.1g} of the largest"
    if options.shards is None:
        result += " (not compared on images: no --shards)"
    else:
        same, compared = compare_on_shards(original, exported, options.shards, source.data, allowed)
        result += f"; the same top-1 class on {same} of {compared} images"
        if options.web:
            write_web_models(source.model, folder, options.shards, source.data)
            require_web_models(folder)

    info = CardInfo(source.name, options.form, options.dtype, source.choice)
    write_eval_results(folder, leaderboard_refs(SourceFiles(folder), info))
    write_text(folder / CARD, model_card(folder, info))
    if problems := unsourced_numbers(folder):
        raise RuntimeError("the card has numbers without a source: " + "; ".join(problems))
    return result


def _add_validation_images(
    source: Source, exported: Logits, folder: Path, options: ExportOptions
) -> None:
    """Calibrate on validation images, and add some as examples, where that is possible.

    Raises:
        InputError: If `options` ask for examples, and there are none that may be published.
    """
    try:
        images = ValidationImages.of(options.shards, source.files.get(SHARDS))
    except InputError as error:
        if options.examples:
            raise
        logger.info(f"no {CALIBRATION} and no {EXAMPLES}/: {first_line(error)}")
        return
    write_calibration(images, exported, source.processor, folder)
    if number := num_examples(images, options.examples):
        write_examples(images, folder, number)


def _reference(source: Source) -> str:
    """Return the name of the model that the export was compared with."""
    if source.origin is None:
        return "the trained model"
    if source.reference is None:
        return "the assumed architecture, which no other library could confirm,"
    return str(source.origin.declared)


def _copy_sources(source: Source, folder: Path) -> None:
    """Copy the files that the card's numbers come from.

    Raises:
        InputError: If a file is missing.
    """
    for name, path in source.files.items():
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


def _check_evaluation(folder: Path, weights: str, *, required: bool) -> None:
    """Check that metrics.json was measured with the exported weights.

    Args:
        folder: The export, which may have a metrics.json.
        weights: Digest of the exported weights.
        required: Whether other weights are an error; otherwise metrics.json is removed.

    Raises:
        InputError: If it was measured with other weights, or not written by `evaluate`.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return
    content = read_json(path)
    is_known = isinstance(content, dict) and content.get("schema") == _SCHEMA
    dataset = content.get("dataset") if is_known else None
    if not isinstance(dataset, dict) or not {"name", "split"} <= dataset.keys():
        raise InputError(
            "metrics.json was not written by evaluate",
            expected=f'{{"schema": {_SCHEMA}, "dataset": {{...}}, "results": [...]}}',
            fix="python -m imagenet_rn50 evaluate --model MODEL --shards SHARDS --out FOLDER",
        )
    measured = content.get("checkpoint", {}).get("weights_sha256", weights)
    if measured == weights:
        # Do not publish local paths.
        write_json(path, content | {"model": Path(content["model"]).name})
        return
    if required:
        raise InputError(
            "metrics.json was measured with other weights",
            expected=f"weights_sha256 {weights}",
            found=str(measured),
            fix="evaluate the exported folder, and export again with its metrics.json",
        )
    logger.info("the run's metrics.json was measured with other weights: omitted from the card")
    path.unlink()
