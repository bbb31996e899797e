"""Plans and tables of recipes: their sums, their commands, and the pages that show them."""

import json
import re
import sys

import pytest

from imagenet_rn50.__main__ import main
from imagenet_rn50.recipe import load_recipe, recipe_names
from imagenet_rn50.tools.estimate import Options, duration, make_estimate
from imagenet_rn50.tools.plan import PACK_MB_S_PER_CORE, PlanOptions, make_plan
from imagenet_rn50.tools.prices import load_prices
from imagenet_rn50.tools.recipe_headers import published_data
from tests.commands import ROOT, Command, check

EC2 = (ROOT / "docs" / "ec2.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
STEPS = ["download", "unzip", "pack", "copy", "train", "evaluate", "export", "volume"]


def printed(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["imagenet_rn50", "estimate", *words])
    main()
    return capsys.readouterr().out


def table_of(page, name):
    found = re.search(rf"<!-- table {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found, name
    return found[1]


def planned(name="rn50-16ep", options=None, **given):
    prices = load_prices()
    found = make_estimate(name, load_recipe(name), prices, options or Options())
    return found, {step.name: step for step in make_plan(found, PlanOptions(**given)).steps}


@pytest.mark.parametrize(
    "name", ["rn50-16ep", max(recipe_names(), key=lambda n: load_recipe(n).epochs)]
)
def test_the_guide_opens_with_the_plan_that_the_command_prints(name, monkeypatch, capsys):
    words = f"--plan --recipe {name} --volume 500 --markdown".split()
    assert table_of(EC2, f"plan-{name}") == printed(monkeypatch, capsys, *words)
    assert EC2.index(f"<!-- table plan-{name}") < EC2.index("\n## ")


def test_the_page_on_recipes_has_the_table_that_the_command_prints(monkeypatch, capsys):
    table = table_of(RECIPES, "recipes")
    assert table == printed(monkeypatch, capsys, "--recipes", "--markdown")
    for name in recipe_names():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == str(load_recipe(name).epochs)
        assert (cells[4], "$" in cells[6]) == (
            ("not yet", True) if published_data(name) else ("yes", False)
        )


def test_a_plan_has_every_step_and_costs_its_hours():
    estimate, steps = planned(volume=500.0)
    assert list(steps) == STEPS
    assert steps["train"].hours.value == duration(estimate.recipe, estimate.rates).hours
    for name, step in steps.items():
        if name != "volume":
            assert step.on_demand == pytest.approx(step.hours.value * 4.6016)
            assert step.spot == pytest.approx(step.hours.value * 2.0357)
    hours = sum(step.hours.value for name, step in steps.items() if name != "volume")
    monthly = 600 * 0.08 + 375 * 0.04
    assert steps["volume"].on_demand == pytest.approx(monthly * hours / 730)
    assert steps["volume"].spot == steps["volume"].on_demand


def test_the_volume_and_the_download_set_the_pace_of_the_preparation():
    _, slow = planned(volume=125.0, download=50.0)
    _, fast = planned(volume=250.0, download=100.0)
    for name in ("download", "unzip", "pack", "copy"):
        assert slow[name].hours.value == pytest.approx(2 * fast[name].hours.value)
    assert slow["train"].hours == fast["train"].hours
    assert slow["download"].hours.basis == "computed"


def test_packing_is_limited_by_the_cores_on_a_fast_volume():
    _, steps = planned(volume=1e6)
    packed = steps["unzip"].gb
    assert packed is not None
    seconds = packed.value * 1e3 / (PACK_MB_S_PER_CORE * 24)
    assert steps["pack"].hours.value == pytest.approx(seconds / 3600)


@pytest.mark.parametrize(
    ("options", "without"),
    [
        (Options("l4x4"), {"copy", "volume"}),  # only the machine's own storage
        (Options(disk=500.0), {"copy"}),  # trained from the volume
        (Options("kaggle-t4x2"), {"copy", "volume"}),
    ],
)
def test_a_plan_has_only_the_steps_that_the_machine_needs(options, without):
    _, steps = planned(options=options)
    assert set(STEPS) - set(steps) == without


@pytest.mark.parametrize("instance", ["g6.2xlarge", "g6.12xlarge", "t4-medium", "kaggle-t4x2"])
def test_our_own_commands_of_a_plan_can_be_typed(instance, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, steps = planned(options=Options(instance))
    for name in ("pack", "train", "evaluate", "export"):
        check(Command(ROOT / "docs" / "ec2.md", steps[name].command, None))


def test_the_rate_of_packing_is_the_one_that_its_benchmark_printed():
    text = (ROOT / "benchmarks" / "results" / "packing.json").read_text(encoding="utf-8")
    found = json.loads(text)
    rate = found["contestants"]["ours, restart markers, 1 workers"]["images_per_s_of_a_core"]
    megabytes = found["mean_image_bytes"] / 1e6
    assert pytest.approx(rate * megabytes, rel=0.01) == PACK_MB_S_PER_CORE


def test_a_machine_whose_gpus_cannot_share_a_recipe_has_no_price_for_it(monkeypatch, capsys):
    out = printed(monkeypatch, capsys, "--recipes", "--instance", "p4d.24xlarge")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["rn50-16ep"][-3:] == ["-", "-", "-"]
    assert rows["nvidia-90ep"][-1].startswith("$")
