"""Print an estimate: a row for the run as asked, one for each change, and every assumption."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from textwrap import wrap

from imagenet_rn50.peaks import peak_tflops, utilisation
from imagenet_rn50.recipe import Recipe, load_recipe, recipe_names
from imagenet_rn50.tools.estimate import (
    RESIZED_FRACTION,
    Estimate,
    Precision,
    Rates,
    duration,
    multi_node_needs,
    variants,
)
from imagenet_rn50.tools.recipe_headers import (
    IMAGENET_1K,
    header_field,
    percent_as_given,
    published_data,
    published_line,
    published_top1,
)
from imagenet_rn50.training.schedules import schedule_warnings
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import counted, rate_text

_NUM_WORKERS = 8  # of a rank: the most that train_accelerate.py starts by default


def format_estimate(estimate: Estimate, target: float | None) -> str:
    """Return the estimate as it is printed.

    Args:
        estimate: The estimate.
        target: A top-1 in (0, 1]: also list the recipes whose published top-1 reaches it.
    """
    options, recipe, rates = estimate.options, estimate.recipe, estimate.rates
    accuracy = published_line(estimate.name)
    data = published_data(estimate.name)
    if data is not None and not data.has_as_many(rates.num_train):
        accuracy = f"unknown on these images; published on {data.name}: {accuracy}"
    lines = [
        f"{estimate.name}: {counted(recipe.epochs, 'epoch')} on {options.nodes} x "
        f"{estimate.machine}, precision {estimate.precision}",
        f"accuracy: {accuracy}",
        *(f"warning: {warning}" for warning in schedule_warnings(recipe, rates.num_train)),
        "",
        _row("", "images/s", "MFU", "limit", "hours", "on demand", "spot"),
    ]
    # How much resizing saves is known of ImageNet only.
    resized_fraction = RESIZED_FRACTION if estimate.is_imagenet else 1.0
    rows = variants(recipe, rates, resized_fraction, estimate.volumes)
    lines += [_priced(estimate, *row, estimate.precision) for row in rows]
    for precision, speed in estimate.speeds.items():
        if precision != estimate.precision:
            changed = replace(rates, gpus=speed)
            lines.append(_priced(estimate, f"precision {precision}", recipe, changed, precision))
    took = duration(recipe, rates, options.nodes)
    lines += session_lines(estimate, took.hours)
    if options.nodes > 1:
        lines += ["", *_multi_node_lines(estimate)]
    if target is not None:
        lines += ["", *_target_lines(estimate, target)]
    lines += ["", "assumptions:", *(f"  {text}" for text in estimate.assumptions)]
    return "\n".join(lines)


def session_lines(estimate: Estimate, hours: float) -> Iterator[str]:
    """Yield how often a machine is taken back in so many hours, if its provider does."""
    provider = estimate.provider
    if provider is None or provider.session_hours is None or provider.weekly_hours is None:
        return
    sessions = counted(math.ceil(hours / provider.session_hours), "session")
    weeks = counted(math.ceil(hours / provider.weekly_hours), "week")
    yield ""
    yield (
        f"{sessions} of at most {provider.session_hours:g} hours, in {weeks} of "
        f"{provider.weekly_hours:g} hours: the run stops and resumes in between ({provider.source})"
    )


def implied_mfu(
    estimate: Estimate, recipe: Recipe, rates: Rates, precision: Precision
) -> float | None:
    """Return the MFU that a run's images/s imply, of the wall clock of training as in its log.

    None if the FLOPs of the model or the peak of the GPU are not known.
    """
    peak = peak_tflops(estimate.instance.gpu, precision)
    if peak is None or estimate.flops_per_image is None:
        return None
    num_gpus = estimate.instance.gpus * estimate.options.nodes
    sides = [recipe.data.size_at(epoch) for epoch in range(recipe.epochs)]
    pixels = sum((side / rates.size) ** 2 for side in sides) / len(sides)
    rate = duration(recipe, rates, estimate.options.nodes).images_per_second
    return utilisation(estimate.flops_per_image * pixels, rate / num_gpus, peak)["mfu"]


def _priced(
    estimate: Estimate, name: str, recipe: Recipe, rates: Rates, precision: Precision
) -> str:
    took = duration(recipe, rates, estimate.options.nodes)
    mfu = implied_mfu(estimate, recipe, rates, precision)
    machine_hours = took.hours * estimate.options.nodes
    instance = estimate.instance
    return _row(
        name,
        rate_text(took.images_per_second),
        "-" if mfu is None else f"{mfu:.1%}",
        took.limit,
        hours_text(took.hours),
        dollars(machine_hours * instance.on_demand),
        dollars(machine_hours * instance.spot) if instance.spot else "-",
    )


def _row(name: str, rate: str, mfu: str, limit: str, hours: str, on_demand: str, spot: str) -> str:
    return f"{name:<38}{rate:>9}{mfu:>7}  {limit:<7}{hours:>7}{on_demand:>11}{spot:>11}"


def hours_text(hours: float) -> str:
    """Return hours with their meaningful digits."""
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def dollars(amount: float) -> str:
    """Return an amount in USD; a price of less than a cent is not free."""
    return "<$0.01" if 0 < amount < 0.01 else f"${amount:,.2f}"


def _multi_node_lines(estimate: Estimate) -> Iterator[str]:
    nodes, network, recipe = estimate.options.nodes, estimate.instance.network_gbps, estimate.recipe
    assert network is not None, "several nodes need an instance of the table"
    need = multi_node_needs(recipe, estimate.rates, nodes, _NUM_WORKERS, network)
    exchange, step = need["exchange_seconds"], need["step_seconds"]
    overlap = "can" if exchange < 2 / 3 * step else "cannot"
    micro_batches = recipe.global_batch // recipe.micro_batch
    ranks = [str(n) for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    yield from (
        f"each of {nodes} nodes, computed and not run here:",
        f"  reads     {need['read_mib']:,.0f} MiB/s of shards = images/s of all nodes x bytes per "
        "image",
        f"  uses      {need['used_mib']:,.0f} MiB/s of them, its part of every batch",
        f"  cache     at least {need['cache_gb']:.1f} GB = (window + 3 + workers + 2) shards with "
        f"{_NUM_WORKERS} workers per rank; {need['whole_gb']:.0f} GB download each shard once",
        f"  gradients {need['exchange_mb']:.0f} MB per step = 2 (N - 1) / N x 4 bytes x "
        f"parameters, {exchange * 1e3:.0f} ms at {network:g} Gbit/s",
        f"            in a step of {step * 1e3:.0f} ms; {overlap} overlap with the backward pass "
        f"(2/3 of it); without overlap, {step / (step + exchange):.0%} of the speed",
        f"  ranks     {', '.join(ranks)} give the same batches",
    )


def _target_lines(estimate: Estimate, target: float) -> Iterator[str]:
    """Yield what each recipe whose published top-1 reaches a target takes on this machine."""
    if not estimate.is_imagenet:
        raise InputError(
            f"--target {target:g} needs ImageNet-1k: the recipes' accuracy is published for it",
            found=f"{counted(estimate.rates.num_train, 'training image')} of another data set",
            fix="omit --target",
        )
    names = [name for name in recipe_names() if published_data(name) == IMAGENET_1K]
    published = {name: published_top1(name) or 0.0 for name in names}
    reaching = {name: top1 for name, top1 in published.items() if top1 >= target}
    if not reaching:
        yield f"no recipe has a published top-1 of {percent_as_given(target)} or more"
        return
    yield f"recipes with a published top-1 of {percent_as_given(target)} or more:"
    num_ranks = estimate.options.nodes * estimate.instance.gpus
    for name, top1 in reaching.items():
        recipe = load_recipe(name)
        try:
            recipe.accumulation(num_ranks)
        except InputError:
            yield f"{name:<38}cannot be shared by {num_ranks} ranks"
            continue
        title = f"{name}, {counted(recipe.epochs, 'epoch')}, {percent_as_given(top1)}"
        yield _priced(estimate, title, recipe, estimate.rates, estimate.precision)
        yield f"  published: {published_line(name)}"
        if differs := header_field(name, "differs"):
            text = f"differs here: {differs}"
            yield from wrap(text, 85, initial_indent="  ", subsequent_indent="    ")
