"""The results of `benchmarks.gpu` as text."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def text(results: dict[str, Any]) -> str:
    """Return all results as text.

    Args:
        results: `about`, `rows` of each section, and `not_run`: why rows are missing.
    """
    about = "\n".join(
        f"{name}: {'; '.join(value) if isinstance(value, list) else value}"
        for name, value in results["about"].items()
    )
    parts = [
        section_text(name, rows, results["not_run"].get(name))
        for name, rows in results["sections"].items()
    ]
    return "\n\n".join([about, *parts]) + "\n"


def section_text(name: str, rows: list[Row], problem: str | None) -> str:
    """Return the results of one section.

    Args:
        name: The section.
        rows: What it measured.
        problem: Why rows are missing, if any are.
    """
    lines = [f"== {name}"]
    if rows:
        lines += _FORMATS[name](rows)
    if problem:
        lines.append(f"not run, or in part: {problem}")
    return "\n".join(lines)


def _roofline(rows: list[Row]) -> list[str]:
    copy = next(row["gb_per_second"] for row in rows if row["name"] == "copy")
    lines = []
    for row in rows:
        if "tflops" in row:
            lines.append(f"{row['name']:<28} {row['tflops']:8.0f} TFLOP/s")
        else:
            rate = row["gb_per_second"]
            lines.append(f"{row['name']:<28} {rate:8.0f} GB/s, {rate / copy:4.0%} of the copy")
    return lines


def _batch(rows: list[Row]) -> list[str]:
    return [
        f"largest micro batch, eager bf16 {row['size']} px: {row['micro_batch']} "
        f"({row['reserved_gib']:.1f} GiB reserved)"
        for row in rows
    ]


def _steps(rows: list[Row]) -> list[str]:
    line = "{:<5} {:>4} {:<12} {:>9} {:>19} {:>8} {:>6} {:>8}"
    lines = [
        f"micro batch {rows[0]['batch']}; images/s: median, least and most of the rounds",
        line.format("float", "px", "", "images/s", "", "TFLOP/s", "MFU", "ours is"),
    ]
    our = {(r["precision"], r["size"]): r for r in rows if r["contender"] == "ours"}
    for row in rows:
        ours = our[row["precision"], row["size"]]
        ratio = ours["images_per_second"] / row["images_per_second"]
        lines.append(
            line.format(
                row["precision"],
                row["size"],
                row["contender"],
                f"{row['images_per_second']:.0f}",
                f"({row['slowest']:.0f} to {row['fastest']:.0f})",
                f"{row['tflops']:.1f}",
                f"{row['mfu']:.1%}" if "mfu" in row else "-",
                "" if row is ours else f"{ratio:.3f} x",
            )
        )
    return lines


def _loop(rows: list[Row]) -> list[str]:
    rates = {
        kind: [row["images_per_second"] for row in rows if row["kind"] == kind]
        for kind in ("bare", "whole")
    }
    lines = [
        f"{name:<38} {', '.join(f'{rate:.0f}' for rate in rates[kind])} images/s"
        for kind, name in (("bare", "bare step, with the loader"), ("whole", "Trainer.train"))
        if rates[kind]
    ]
    if rates["bare"] and rates["whole"]:
        bare, whole = (sum(rates[kind]) / len(rates[kind]) for kind in ("bare", "whole"))
        lines.append(f"the whole loop takes {bare / whole - 1:+.1%} time")
    return lines


def _loader(rows: list[Row]) -> list[str]:
    synthetic = [row["images_per_second"] for row in rows if row["data"] == "synthetic"]
    mean = sum(synthetic) / len(synthetic)
    lines = [f"one batch in memory  {', '.join(f'{rate:.0f}' for rate in synthetic)} images/s"]
    return lines + [
        f"{row['workers']:>2} loader workers    {row['images_per_second']:.0f} images/s, "
        f"{row['images_per_second'] / mean:.1%}"
        for row in rows
        if row["data"] == "loader"
    ]


def _resume(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        if "save" in row:
            lines.append(
                f"a save of {row['bytes'] / 1e6:.0f} MB stops training for "
                f"{1e3 * row['stall_seconds']:.0f} ms; on disk after {row['seconds']:.1f} s"
            )
        else:
            equal = "equal" if row["hashes_equal"] else "DIFFERENT"
            lines.append(
                f"stopped after {row['steps']} steps and resumed for as many: sample hashes "
                f"{equal}, losses within {row['loss_difference']:.2%}"
            )
    return lines


def _evaluation(rows: list[Row]) -> list[str]:
    return [
        f"{row['num_images']} images in {row['seconds']:.1f} s, start of the workers included: "
        f"{row['num_images'] / row['seconds']:.0f} images/s"
        for row in rows
    ]


def _breakdown(rows: list[Row]) -> list[str]:
    lines = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        lines.append(f"{mode}:")
        for row in rows:
            if row["mode"] != mode:
                continue
            if "kind" in row:
                lines.append(f"  {row['kind']:<34} {row['ms']:8.2f} ms {row['share']:7.1%}")
            else:
                lines.append(f"    {row['ms']:8.2f} ms  {row['kernel']}")
    return lines


def _tests(rows: list[Row]) -> list[str]:
    return [row["summary"] for row in rows]


_FORMATS = {
    "roofline": _roofline,
    "batch": _batch,
    "eager": _steps,
    "loop": _loop,
    "loader": _loader,
    "resume": _resume,
    "evaluation": _evaluation,
    "breakdown": _breakdown,
    "tests": _tests,
    "compiled": _steps,
}
