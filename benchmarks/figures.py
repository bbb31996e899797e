"""The figures of README.md and docs/, drawn from the code, from results, and from the demo's run.

    make demo
    python -m benchmarks.figures                  all of them, into docs/figures/
    python -m benchmarks.figures --only order resume

The diagrams of order, resuming and restart markers show what the sampler and the JPEG code return,
not what somebody drew. Each PNG carries the words in it as its text `Labels`, as JSON.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.serving import TIMEOUT_SECONDS, free_port, serving
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.jpeg.crop import Box, Piece, cut, suggested_interval
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.shards.lossless import add_restart_markers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
DEMO, SHARDS = ROOT / "runs" / "demo", ROOT / "data" / "digits" / "shards"
_PHOTO = ROOT / "app" / "examples" / "astronaut.jpg"  # NASA, public domain
_RESULT = ROOT / "benchmarks" / "results" / "loaders.json"
_OURS, _PEER, _CROP = "#2f7ebc", "#b8bec6", "#e07b39"
_DPI = 110
_PAGE = (1200, 900)  # px of the browser's window
_QUARTER = (640, 480)  # px of a picture in README.md's table


@dataclass(frozen=True)
class Arguments:
    """Draw the figures of the documents."""

    out: Path = ROOT / "docs" / "figures"
    """Folder of the PNGs."""
    only: tuple[str, ...] = ()
    """Names of the figures to draw; all by default."""


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _save(path: Path, picture: Image.Image, labels: list[str]) -> None:
    """Write a PNG of at most 256 colors, with the words in it."""
    info = PngInfo()
    info.add_text("Labels", json.dumps(labels))
    colors = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colors.save(path, pnginfo=info, optimize=True)


def _save_figure(path: Path, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = [text.get_text() for text in figure.findobj(Text)]
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    _save(path, picture, sorted({text for text in found if text.strip()}))


def draw_loaders(path: Path) -> None:
    """Draw images/s of each peer beside that of our loader with the same bytes."""
    found = json.loads(_RESULT.read_text(encoding="utf-8"))
    beside = {name: about["beside"] for name, about in found["loaders"].items()}
    peers = [name for name in beside if not name.startswith("ours")]
    speed = {name: row["images_per_s"] for name, row in found["medians"].items()}
    peers.sort(key=lambda name: -found["medians"][name]["ratio"])
    figure = _new_figure(8.5, 0.42 * len(peers) + 1.3)
    axes = figure.subplots()
    rows = np.arange(len(peers))
    theirs = axes.barh(rows - 0.2, [speed[name] for name in peers], 0.38, color=_PEER)
    ours = axes.barh(rows + 0.2, [speed[beside[name]] for name in peers], 0.38, color=_OURS)
    axes.bar_label(theirs, fmt="{:,.0f}", padding=3, fontsize=8)
    ratios = [f"x {found['medians'][name]['ratio']:.2f}" for name in peers]
    axes.bar_label(ours, labels=ratios, padding=3, fontsize=8, color=_OURS)
    axes.set_yticks(rows, peers)
    axes.set_xlabel("images/s on the same two cores: decoded, random crop to 224 px, flipped")
    names = ["this loader, same bytes", "the other"]
    figure.legend(
        [*ours[:1], *theirs[:1]], names, loc="outside lower right", ncols=2, frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        "python -m benchmarks.loaders, " + f"{found['date']}, {found['machine']}", size=9
    )
    _save_figure(path, figure)


def draw_order(path: Path) -> None:
    """Draw which shard each position of an epoch reads, for three windows."""
    num_shards, each = 8, 24
    sizes = np.full(num_shards, each, np.int64)
    figure = _new_figure(8.5, 2.6)
    rows = figure.subplots(4, sharex=True)
    shards = [np.repeat(np.arange(num_shards), each)]
    for window in (1, 3, num_shards):
        sampler = ShardShuffleSampler(sizes, seed=0, window=window)
        shards.append(sampler.indices(0, num_shards * each)[1] // each)
    names = ("as packed", "window 1", "window 3", f"window {num_shards}")
    for axes, row, name in zip(rows, shards, names, strict=True):
        axes.imshow(row[None], aspect="auto", cmap="tab10", vmin=0, vmax=9, interpolation="none")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set_yticks([])
    rows[-1].set_xlabel(f"position in an epoch of {num_shards} shards, a color each")
    _save_figure(path, figure)


def draw_resume(path: Path) -> None:
    """Draw which rank reads which sample, on two ranks and, after a stop, on four."""
    batch, micro, steps = 8, 2, (3, 3)
    sampler = ShardShuffleSampler(np.full(6, 8, np.int64), seed=1, window=3)
    figure = _new_figure(8.5, 3.4)
    whole = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    stop = steps[0] * batch
    stages = ((2, 0, stop), (4, stop, stop + steps[1] * batch))
    for axes, (ranks, first, last) in zip(whole, stages, strict=True):
        for rank in range(ranks):
            mine = DistributedBatchSampler(first, last, micro, rank, ranks)
            for turn, start in enumerate(mine.starts):
                samples = sampler.indices(start, mine.size_at(start))[1]
                color = f"C{start // batch % 10}"
                axes.barh(rank, 0.92, left=turn, height=0.8, color=color, alpha=0.35)
                words = " ".join(str(sample) for sample in samples)
                axes.text(turn + 0.46, rank, words, ha="center", va="center", fontsize=9)
        turns = (last - first) // (micro * ranks)
        axes.set_xticks(np.arange(turns) + 0.46, [str(turn + 1) for turn in range(turns)])
        axes.set_xlabel("micro batch")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(f"{ranks} ranks, positions {first} to {last - 1}", size=10)
    whole[0].set_yticks(range(4), [f"rank {rank}" for rank in range(4)])
    whole[0].invert_yaxis()
    figure.suptitle(
        "Samples of each optimizer step (a color each): the same on any number of ranks"
    )
    _save_figure(path, figure)


def draw_restart_markers(path: Path) -> None:
    """Draw the segments of a JPEG, and those that a crop needs."""
    box = (60, 130, 150, 190)  # top, left, height, width
    plain = _PHOTO.read_bytes()
    header = read_header(plain, strict=True)
    assert header.mcu is not None
    mcu_height, mcu_width = header.mcu
    interval = suggested_interval(header.grid[1], mcu_width)
    marked = add_restart_markers(plain, interval)
    piece = cut(marked, box)
    top, left = box[0] - piece.offset[0], box[1] - piece.offset[1]
    kept = (slice(top, top + piece.size[0]), slice(left, left + piece.size[1]))
    pixels = np.asarray(Image.open(io.BytesIO(marked)).convert("RGB"))
    _assert_shows(pixels, piece, box)
    shown = (0.35 * pixels + 0.65 * 255).astype(np.uint8)
    shown[kept] = pixels[kept]
    figure = _new_figure(6.0, 6.0 * header.height / header.width + 0.6)
    axes = figure.subplots()
    axes.imshow(shown)
    edges = {"color": "black", "linewidth": 0.4, "alpha": 0.6}
    for y in range(0, header.height + 1, mcu_height):
        axes.axhline(y - 0.5, **edges)  # type: ignore[arg-type]
    for x in range(0, header.width + 1, interval * mcu_width):
        axes.axvline(x - 0.5, **edges)  # type: ignore[arg-type]
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((box[1], box[0]), box[3], box[2], fill=False, edgecolor=_CROP, linewidth=3)
    )
    axes.set_axis_off()
    part = len(piece.jpeg) / len(marked)
    axes.set_title(
        f"Segments of {interval} MCUs. The crop (orange) needs {part:.0%} of the bytes.", size=10
    )
    _save_figure(path, figure)


def _assert_shows(pixels: NDArray[np.uint8], piece: Piece, box: Box) -> None:
    """Check that a piece shows a box as the whole image does."""
    (top, left, height, width), (y, x) = box, piece.offset
    cropped = np.asarray(Image.open(io.BytesIO(piece.jpeg)).convert("RGB"))
    of_piece = cropped[y : y + height, x : x + width]
    assert np.array_equal(of_piece, pixels[top : top + height, left : left + width])


def draw_curves(path: Path) -> None:
    """Put two plots of the demo's run below each other."""
    plots = [DEMO / "plots" / f"{name}.png" for name in ("loss", "accuracy")]
    width, height = _QUARTER[0], _QUARTER[0] * 4 // 7
    sheet = Image.new("RGB", (width, len(plots) * height), "white")
    for place, plot in enumerate(plots):
        with Image.open(plot) as picture:
            tile = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (0, place * height))
    _save(path, sheet, [plot.stem for plot in plots])


def draw_contact_sheet(path: Path) -> None:
    """Draw random images of the demo's shards with their class names."""
    sheet = path.with_suffix(".sheet.png")
    words = ["--shards", str(SHARDS), "--out", str(sheet), "--num", "15"]
    subprocess.run([sys.executable, "shard_imagenet.py", "sample", *words], cwd=ROOT, check=True)
    with Image.open(sheet) as picture:
        _save(path, _fitted(picture.convert("RGB")), ["15 samples"])
    sheet.unlink()


def _fitted(picture: Image.Image) -> Image.Image:
    """Return a picture that fits README.md's table, on white."""
    picture.thumbnail(_QUARTER, Image.Resampling.LANCZOS)
    page = Image.new("RGB", _QUARTER, "white")
    page.paste(picture, ((_QUARTER[0] - picture.width) // 2, 0))
    return page


def draw_report(path: Path) -> None:
    """Photograph the evaluation report of the demo."""
    with _browser() as page:
        page.goto((DEMO / "evaluation" / "report.html").as_uri())
        _photograph(page, path, "h1, h2")


def draw_space(path: Path) -> None:
    """Photograph the Space with the demo's model, which answers its first example."""
    port = free_port()
    environment = {"MODEL_ID": str(DEMO / "exported"), "GRADIO_SERVER_PORT": f"{port}"}
    with _page_of([str(ROOT / "app" / "app.py")], port, environment) as page:
        page.get_by_role("group", name="Most likely classes").get_by_role("radio").nth(4).wait_for()
        page.get_by_alt_text("Heat map: ").wait_for()
        _photograph(page, path, "h1")


def draw_web_space(path: Path) -> None:
    """Photograph the page that classifies in the browser, with the demo's model."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        model = shutil.copytree(DEMO / "exported", Path(folder, "digits"))
        words = ["-m", "imagenet_rn50", "web", "--model", str(model), "--shards", str(SHARDS)]
        with _page_of([*words, "--port", f"{port}"], port, {}) as page:
            page.locator("#examples button").first.click()
            page.get_by_text("on this device").wait_for()
            _photograph(page, path, "h1")


@contextmanager
def _page_of(words: list[str], port: int, environment: dict[str, str]) -> Iterator[Page]:
    """Open the page that a Python program serves."""
    with serving(words, port, environment) as server, _browser() as page:
        page.goto(server.address)
        yield page


@contextmanager
def _browser() -> Iterator[Page]:
    """Open a page in Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    width, height = _PAGE
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1000 * TIMEOUT_SECONDS)
        yield page
        browser.close()


def _photograph(page: Page, path: Path, headings: str) -> None:
    page.wait_for_timeout(1000)  # until transitions have ended
    picture = Image.open(io.BytesIO(page.screenshot()))
    _save(path, _fitted(picture.convert("RGB")), page.locator(headings).all_inner_texts())


FIGURES: dict[str, Callable[[Path], Any]] = {
    "loaders": draw_loaders,
    "order": draw_order,
    "resume": draw_resume,
    "restart_markers": draw_restart_markers,
    "curves": draw_curves,
    "contact_sheet": draw_contact_sheet,
    "report": draw_report,
    "space": draw_space,
    "web_space": draw_web_space,
}


def labels_of(path: Path) -> list[str]:
    """Return the words in a figure that this module drew."""
    with Image.open(path) as picture:
        found: list[str] = json.loads(picture.info["Labels"])
    return found


def main() -> None:
    """Draw the figures that were asked for."""
    arguments = tyro.cli(Arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or FIGURES:
        path = arguments.out / f"{name}.png"
        FIGURES[name](path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
