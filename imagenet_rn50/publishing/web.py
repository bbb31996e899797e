"""The web page that classifies on the visitor's machine: a static Space, also served locally.

FOLDER/
  index.html  style.css  *.js  README.md     from `web/` of this repository
  model.json                                 classes, preprocessing, files, accuracy
  onnx/                                      model_quantized.onnx, model_fp16.onnx
  ort/                                       ONNX Runtime Web, from npm at a pinned hash
  examples/                                  those of the export

The runtime is part of the Space instead of coming from a CDN: visitors contact one host only, and
the page works offline.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tarfile
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard

from imagenet_rn50.publishing.layout import (
    CARD,
    CONFIG,
    EXAMPLES,
    ONNX_MODELS,
    PROCESSOR,
    WEB_METRICS,
)
from imagenet_rn50.shards.imagenet1k import NUM_CLASSES
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import (
    TEMPORARY_SUFFIX,
    make_folder,
    read_json,
    replace_folder,
    sha256_of_file,
)
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.storage import RemoteFolder

WEB = Path(__file__).parents[2] / "web"
MODEL_FILE = "model.json"
RUNTIME_VERSION = "1.30.0"
_RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
_RUNTIME = Path("ort")
_RUNTIME_MODULE, _RUNTIME_WASM = "ort.min.mjs", "ort.wasm.gz"
_NPM = "https://registry.npmjs.org"
_OFFERED = ("int8", "fp16")  # browsers download these; float32 is shown for comparison
_NEEDED = (CONFIG, PROCESSOR, str(WEB_METRICS), *(str(ONNX_MODELS[name]) for name in _OFFERED))
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_NUMBER = re.compile(r"^\d+[ _-]+")  # which sorts examples
_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
PORT = 7861
"""Beside Gradio's 7860."""


def has_web_models(folder: Path) -> bool:
    """Return whether an exported folder has all files that the page needs."""
    return not _missing(folder)


def _missing(folder: Path) -> list[str]:
    """Return which of the files are missing."""
    return [name for name in _NEEDED if not (folder / name).is_file()]


def require_web_models(folder: Path) -> None:
    """Check that an exported folder has all that the page needs.

    Raises:
        InputError: If files are missing, or the page does not support the preprocessing.
    """
    if missing := _missing(folder):
        raise InputError(
            f"{folder} has no models for browsers",
            expected=", ".join(_NEEDED),
            found=f"no {', no '.join(missing)}" if folder.is_dir() else "no such folder",
            fix="export with --web --shards SHARDS, or pass --shards SHARDS to web",
        )
    _preprocessing(folder)


def stage_web_space(
    folder: Path,
    stage: Path,
    *,
    runtime: Path | None,
    hub_id: str | None = None,
    revision: str | None = None,
) -> None:
    """Stage the files of the page.

    Args:
        folder: Exported folder with models for browsers.
        stage: A folder; its content is replaced. Large files are linked.
        runtime: From `download_runtime`; None leaves it out, to list the other files.
        hub_id: Hub id of the model, to link to; None for a local folder.
        revision: Commit of the model to link to.

    Raises:
        InputError: If the page's own files or the models are missing.
    """
    if not (WEB / "index.html").is_file():
        raise InputError(
            f"there is no page in {WEB}",
            expected="index.html, app.js, README.md",
            fix="push from a checkout of the repository",
        )
    require_web_models(folder)
    shutil.rmtree(stage, ignore_errors=True)
    linked = {path.relative_to(WEB): path for path in sorted(WEB.rglob("*")) if path.is_file()}
    linked |= {Path(ONNX_MODELS[name]): folder / ONNX_MODELS[name] for name in _OFFERED}
    linked |= {Path(EXAMPLES, path.name): path for path in _examples(folder)}
    if runtime is not None:
        linked |= {_RUNTIME / path.name: path for path in sorted(runtime.iterdir())}
    for name, path in linked.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).symlink_to(path.resolve())
    card = SpaceCard((WEB / CARD).read_text(encoding="utf-8"))
    card.data["models"] = [hub_id] if hub_id else []
    _write(stage / CARD, str(card))
    content = _page_content(folder, runtime, hub_id, revision)
    _write(stage / MODEL_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Write a text file in place of a link."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def _examples(folder: Path) -> list[Path]:
    """Return the example images of an export; those of app/ if it has none and 1,000 classes."""
    places = [folder / EXAMPLES]
    if len(read_json(folder / CONFIG)["id2label"]) == NUM_CLASSES:
        places.append(WEB.with_name("app") / EXAMPLES)
    for place in places:
        files = sorted(place.glob("*"))
        if found := [path for path in files if path.suffix.lower() in _IMAGE_ENDINGS]:
            return found
    return []


def _page_content(
    folder: Path, runtime: Path | None, hub_id: str | None, revision: str | None
) -> dict[str, Any]:
    """Return what the page shows and needs to know of the model."""
    config, metrics = read_json(folder / CONFIG), read_json(folder / WEB_METRICS)
    labels = config["id2label"]
    models = {name: metrics["models"][name] for name in (*_OFFERED, "fp32")}
    for name, content in models.items():
        content.pop("file")
        content["path"] = str(ONNX_MODELS[name]) if name in _OFFERED else None
    wasm = None if runtime is None else runtime / _RUNTIME_WASM
    return {
        "name": hub_id or _title(folder),
        "url": f"https://huggingface.co/{hub_id}/tree/{revision}" if hub_id and revision else None,
        "architecture": config["architectures"][0],
        "labels": [labels[str(index)] for index in range(len(labels))],
        "preprocessing": _preprocessing(folder),
        "dataset": metrics["dataset"] | {"num_images": metrics["num_images"]},
        "models": models,
        "runtime": {
            "version": RUNTIME_VERSION,
            "path": f"{_RUNTIME}/{_RUNTIME_WASM}",
            "bytes": wasm.stat().st_size if wasm else None,
            "sha256": sha256_of_file(wasm) if wasm else None,
        },
        "examples": [
            {"path": f"{EXAMPLES}/{path.name}", "name": _NUMBER.sub("", path.stem)}
            for path in _examples(folder)
        ],
    }


def _title(folder: Path) -> str:
    """Return the name of the model in its card, or that of its folder if there is no card."""
    if (folder / CARD).is_file():
        for line in (folder / CARD).read_text(encoding="utf-8").splitlines():
            if line.startswith("# "):
                return line.removeprefix("# ").strip()
    return folder.resolve().name


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Return the preprocessing of an export, as the page's `pixels.js` takes it.

    Raises:
        InputError: If the page cannot do it.
    """
    settings = read_json(folder / PROCESSOR)
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    checked: dict[str, tuple[Any, Any]] = {step: (settings.get(step), True) for step in steps}
    checked["rescale_factor"] = (round(settings.get("rescale_factor") or 0, 6), round(1 / 255, 6))
    checked["resample is 2 or 3"] = (settings.get("resample") in _RESAMPLE, True)
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    checked["size"] = (sorted(size), ["shortest_edge"])
    checked["crop_size"] = (sorted(crop), ["height", "width"])
    for name, (found, expected) in checked.items():
        if found != expected:
            raise InputError(
                f"the page does not support the preprocessing in {folder / PROCESSOR}",
                expected=f"{name}: {expected}",
                found=str(found),
            )
    if max(crop.values()) > size["shortest_edge"]:
        raise InputError(
            f"the crop in {folder / PROCESSOR} is larger than the image",
            expected=f"at most {size['shortest_edge']} px",
            found=f"{crop['width']} x {crop['height']} px",
        )
    return {
        "resize": size["shortest_edge"],
        "crop": {"height": crop["height"], "width": crop["width"]},
        "resample": _RESAMPLE[settings["resample"]],
        "mean": settings["image_mean"],
        "std": settings["image_std"],
    }


def download_runtime(cache: Path | None = None) -> Path:
    """Return a folder with ONNX Runtime Web, downloaded from npm once.

    Its WebAssembly is compressed, for not every host does that: 3.7 MB instead of 14.2 MB.

    Args:
        cache: Folder to keep it in; None for that of the user.

    Raises:
        InputError: If it cannot be downloaded, or is not the file of that hash.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    final = cache / "imagenet_rn50" / f"onnxruntime-web-{RUNTIME_VERSION}"
    if final.is_dir():
        return final
    make_folder(final.parent, "set XDG_CACHE_HOME to a writable folder")
    registry = RemoteFolder(os.environ.get("NPM_CONFIG_REGISTRY") or _NPM)
    name = f"onnxruntime-web/-/onnxruntime-web-{RUNTIME_VERSION}.tgz"
    logger.info(f"downloading {registry.public}/{name}, once")
    with tempfile.TemporaryDirectory(dir=final.parent, suffix=TEMPORARY_SUFFIX) as temporary:
        tarball, unpacked = Path(temporary, "package.tgz"), Path(temporary, "unpacked")
        registry.download(name, tarball, sha256=_RUNTIME_SHA256)
        unpacked.mkdir()
        with tarfile.open(tarball) as tar:
            (unpacked / _RUNTIME_MODULE).write_bytes(_member(tar, "ort.wasm.bundle.min.mjs"))
            wasm = _member(tar, "ort-wasm-simd-threaded.wasm")
        (unpacked / _RUNTIME_WASM).write_bytes(gzip.compress(wasm, mtime=0))
        replace_folder(unpacked, final)
    return final


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    """Return the content of a file in the package's `dist` folder."""
    file = tar.extractfile(f"package/dist/{name}")
    assert file is not None  # the tarball has the pinned hash
    return file.read()


class _Handler(SimpleHTTPRequestHandler):
    """Serve files with the headers of the static Space; see `web/README.md`."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".gz": "application/gzip",
        ".onnx": "application/octet-stream",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""


def web_server(folder: Path, port: int = PORT) -> ThreadingHTTPServer:
    """Return a server of a staged folder on this machine; the caller runs and closes it.

    Args:
        folder: From `stage_web_space`.
        port: TCP port; 0 for any.

    Raises:
        InputError: If the port is in use.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise InputError(
            f"port {port} cannot be used", found=error.strerror, fix="pass another one as --port"
        ) from None


def serve_web_space(folder: Path, port: int = PORT) -> None:
    """Serve the page of an exported folder until Ctrl-C.

    Args:
        folder: Exported folder with models for browsers.
        port: TCP port.

    Raises:
        InputError: If the folder lacks the models, or the port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="web-") as temporary:
        stage = Path(temporary, "page")
        stage_web_space(folder, stage, runtime=download_runtime())
        with web_server(stage, port) as server:
            logger.info(f"serving {folder}: open http://127.0.0.1:{port} (Ctrl-C to stop)")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                logger.info("stopped")
