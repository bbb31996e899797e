import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.__main__ import main
from imagenet_rn50.classes import Classes
from imagenet_rn50.data.prefetch import least_cache_bytes
from imagenet_rn50.data.sampler import ShardShuffleSampler
from imagenet_rn50.model import build_model
from imagenet_rn50.recipe import DataRecipe, ModelRecipe, Recipe, load_recipe, recipe_names
from imagenet_rn50.shards.manifest import TRAIN
from imagenet_rn50.tools.estimate import (
    FLOPS_PER_IMAGE,
    LOADER_IMAGES_PER_CORE,
    LOCAL_MIB,
    NUM_PARAMETERS,
    Options,
    Rates,
    duration,
    make_estimate,
    multi_node_needs,
    variants,
)
from imagenet_rn50.tools.estimate_report import format_estimate
from imagenet_rn50.tools.prices import PRICES, load_prices
from imagenet_rn50.tools.recipe_headers import (
    IMAGENET_1K,
    published_data,
    published_line,
    published_top1,
)
from imagenet_rn50.utilisation import training_flops
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import rate_text
from tests.support import write_shards

ROOT = Path(__file__).parents[2]
RATES = Rates(
    gpus=1000, size=224, loader=1e6, volume=1e6, bytes_per_image=1e5, memory_bytes=1e12,
    num_train=3600, num_validation=0,
)  # fmt: skip


def test_hours_are_images_over_the_rate_of_the_slowest():
    ten = Recipe(epochs=10)
    assert duration(ten, RATES).hours == pytest.approx(10 * 3.6 / 3600)
    loader = duration(ten, replace(RATES, loader=100))
    assert loader.limit == "loader"
    assert loader.hours == pytest.approx(0.1)
    volume = duration(ten, replace(RATES, volume=10e6 / 2**20, memory_bytes=1))
    assert volume.limit == "volume"
    assert volume.hours == pytest.approx(0.1)


def test_shards_that_fit_into_memory_are_read_from_the_volume_in_one_epoch_only():
    slow = replace(RATES, volume=10e6 / 2**20)  # 100 images/s
    took = duration(Recipe(epochs=10), slow)
    assert took.hours == pytest.approx((36 + 9 * 3.6) / 3600)


def test_growing_crops_cost_their_pixels():
    data = DataRecipe(train_size=112, final_size=224, growth=(0, 1))
    grown = duration(Recipe(epochs=2, data=data), RATES)
    assert grown.hours == pytest.approx(3.6 * (1 / 4 + 1) / 3600)


def test_an_evaluation_costs_a_third_of_training():
    evaluated = replace(RATES, num_validation=3000)
    assert duration(Recipe(epochs=1), evaluated).hours == pytest.approx((3.6 + 1) / 3600)


@given(nodes=st.integers(1, 16), gpus=st.floats(10, 1e5), loader=st.floats(10, 1e5))
def test_more_nodes_never_take_longer_and_never_less_than_their_part(nodes, gpus, loader):
    rates = replace(RATES, gpus=gpus, loader=loader)
    one, many = duration(Recipe(), rates), duration(Recipe(), rates, nodes)
    assert one.hours / nodes * (1 - 1e-9) <= many.hours <= one.hours * (1 + 1e-9)


def test_a_volume_does_not_get_faster_with_nodes():
    slow = replace(RATES, volume=1, memory_bytes=1)
    assert duration(Recipe(), slow, 8).hours == duration(Recipe(), slow).hours


def test_a_change_that_changes_nothing_is_not_a_variant():
    names = [name for name, _, _ in variants(Recipe(), replace(RATES, volume=125), 0.5)]
    assert names[0] == "as asked"
    assert "crops of 224 px throughout" not in names
    assert "volume of 125 MiB/s (gp3 default)" not in names


def test_the_price_table_states_its_source_and_date():
    table = load_prices()
    for provider in table.providers.values():
        assert provider.source
        assert provider.looked_up.year >= 2026
    for instance in table.instances.values():
        assert instance.provider in table.providers
        assert instance.spot is None or instance.spot <= instance.on_demand


def test_a_price_table_of_the_user_replaces_it(tmp_path):
    content = yaml.safe_load(PRICES.read_text())
    content["instances"]["mine"] = content["instances"]["g6.12xlarge"] | {"on_demand": 1.0}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, default_flow_style=False))
    table = load_prices(tmp_path / "mine.yaml")
    assert table.instance("mine").on_demand == 1.0
    del content["instances"]["mine"]["gpus"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, default_flow_style=False))
    with pytest.raises(InputError, match=r"instances\.mine\.gpus"):
        load_prices(tmp_path / "mine.yaml")


def test_a_provider_that_the_table_lacks_is_named(tmp_path):
    content = yaml.safe_load(PRICES.read_text())
    del content["providers"]["kaggle"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, default_flow_style=False))
    with pytest.raises(InputError, match="'kaggle'"):
        load_prices(tmp_path / "mine.yaml")


def estimated(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["imagenet_rn50", "estimate", *words])
    main()
    return capsys.readouterr().out


def test_an_estimate_prints_its_prices_and_that_its_speed_was_not_measured(monkeypatch, capsys):
    out = estimated(monkeypatch, capsys, "--recipe", "onecycle-plateau")
    assert "908 images/s of 4 L4 at 224 px in mixed precision: computed, NOT MEASURED HERE" in out
    assert "looked up 2026-11-23; check it" in out
    unpublished = [line for line in out.splitlines() if "unpublished log" in line]
    assert len(unpublished) == 1
    assert not re.search(r"\bpublished", unpublished[0])
    hours, on_demand, spot = re.search(
        r"as asked .* ([\d.]+) +\$([\d.]+) +\$([\d.]+)", out
    ).groups()  # type: ignore[union-attr]
    assert float(on_demand) / float(hours) == pytest.approx(4.6016, rel=0.01)
    assert float(spot) / float(hours) == pytest.approx(2.0357, rel=0.01)
    single = re.search(r"precision no .* ([\d.]+) +\$", out)
    assert single
    assert float(single[1]) == pytest.approx(float(hours) / 0.44, rel=0.02)
    for part in ("crops of 128 px", "resized", "precision no", "125 MiB/s", "47% of the bytes"):
        assert part in out


def test_the_baseline_of_a_gp3_volume_is_about_1100_unresized_images(monkeypatch, capsys):
    out = estimated(monkeypatch, capsys, "--recipe", "rn50-16ep", "--disk", "125")
    rate = re.search(r"125 MiB/s of the volume, ([\d,]+) images/s", out)
    assert rate
    assert float(rate[1].replace(",", "")) == pytest.approx(1100, rel=0.05)


def test_a_cited_run_takes_as_long_as_it_took(monkeypatch, capsys):
    out = estimated(monkeypatch, capsys, "--recipe", "onecycle-plateau")
    (cited,) = set(re.findall(r"67 epochs?, .*?took ([\d.]+) hours", out))
    assert re.search(r"as asked +\S+ +\S+ +devices +([\d.]+)", out)[1] == cited == "26.6"  # type: ignore[index]


@pytest.mark.parametrize(
    ("instance", "fits_local", "fits_memory"),
    [("g6.2xlarge", True, False), ("g6.12xlarge", True, True), ("t4-small", False, False)],
)
def test_shards_are_read_from_the_machines_own_storage_if_it_holds_them(
    instance, fits_local, fits_memory
):
    options = Options(instance=instance, images_per_second=1000)
    found = make_estimate("rn50-16ep", load_recipe("rn50-16ep"), load_prices(), options)
    assert found.volume.is_local == fits_local
    assert found.rates.volume == LOCAL_MIB
    assert found.rates.fits_memory == fits_memory
    given = replace(options, disk=50.0)
    found = make_estimate("rn50-16ep", load_recipe("rn50-16ep"), load_prices(), given)
    assert (found.rates.volume, found.volume.is_local) == (50.0, False)


def test_a_machine_of_ec2_without_storage_reads_from_a_gp3(tmp_path):
    content = yaml.safe_load(PRICES.read_text())
    del content["instances"]["g6.12xlarge"]["local_gb"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, default_flow_style=False))
    prices = load_prices(tmp_path / "mine.yaml")
    found = make_estimate("rn50-16ep", load_recipe("rn50-16ep"), prices, Options())
    assert (found.rates.volume, found.volume.is_local) == (125, False)


@pytest.mark.parametrize("instance", ["g4dn.12xlarge", "kaggle-t4x2"])
def test_a_gpu_without_bf16_trains_in_fp16(instance):
    recipe, prices = load_recipe("rn50-16ep"), load_prices()
    assert make_estimate("rn50-16ep", recipe, prices, Options(instance)).precision == "fp16"
    with pytest.raises(InputError, match="T4 has no bf16"):
        make_estimate("rn50-16ep", recipe, prices, Options(instance, "bf16"))


def test_kaggles_sessions_are_counted(monkeypatch, capsys):
    words = "--recipe rn50-16ep --instance kaggle-t4x2 --images-per-second 250".split()
    out = estimated(monkeypatch, capsys, *words)
    hours = float(re.search(r"as asked +\S+ +\S+ +\S+ +([\d.]+)", out)[1])  # type: ignore[index]
    sessions, weeks = map(int, re.search(r"(\d+) sessions? .* in (\d+) weeks? of 30", out).groups())  # type: ignore[union-attr]
    assert (sessions - 1) * 12 < hours <= sessions * 12
    assert (weeks - 1) * 30 < hours <= weeks * 30


def test_jobs_of_the_hub_have_no_spot_price(monkeypatch, capsys):
    out = estimated(monkeypatch, capsys, "--recipe", "rn50-16ep", "--instance", "l4x4")
    (row,) = (line.split() for line in out.splitlines() if line.startswith("as asked"))
    hours, on_demand, spot = row[-3:]
    assert float(on_demand[1:]) / float(hours) == pytest.approx(3.80, rel=0.02)
    assert spot == "-"
    assert "jobs-pricing.md" in out


GPU_RESULTS = sorted((ROOT / "benchmarks" / "results").glob("gpu-*.json"))


@pytest.mark.skipif(not GPU_RESULTS, reason="no benchmarks/results/gpu-*.json is there yet")
def test_a_measured_speed_is_the_one_in_the_results():
    speeds = [speed for speed in load_prices().speeds if speed.basis == "measured"]
    assert len(speeds) == len(GPU_RESULTS)
    for speed in speeds:
        path = (ROOT / speed.source).with_suffix(".json")
        results = json.loads(path.read_text(encoding="utf-8"))
        (row,) = (
            row
            for row in results["sections"]["eager"]
            if (row["precision"], row["size"], row["contender"]) == ("bf16", 224, "ours")
        )
        assert speed.gpu in results["about"]["device"]
        assert speed.gpus == 1
        assert speed.images_per_second == round(row["images_per_second"])


def test_a_measured_machine_is_an_instance_by_the_words_of_its_gpu(tmp_path):
    device = {"name": "NVIDIA A100-SXM4-40GB", "steps": {"bf16": 2000.0}, "size": 224}
    found = {"machine": {"memory_bytes": 2**40, "cores": 96}, "devices": [device] * 8}
    (tmp_path / "doctor.json").write_text(json.dumps(found | {"packed": None}))
    options = Options("p4d.24xlarge", measured=tmp_path / "doctor.json")
    recipe = load_recipe("classic-90ep")
    assert make_estimate("classic-90ep", recipe, load_prices(), options).rates.gpus == 16000
    with pytest.raises(InputError, match="not measured on a a100x8"):
        make_estimate("classic-90ep", recipe, load_prices(), replace(options, instance="a100x8"))


def test_a_price_and_a_speed_can_be_given(monkeypatch, capsys):
    words = "--recipe rn50-16ep --instance p5.48xlarge --images-per-second 20000 --price 10"
    out = estimated(monkeypatch, capsys, *words.split(), "--micro-batch", "128")
    assert "20,000 images/s of the GPUs at 224 px: --images-per-second" in out
    assert "$10 an hour: --price" in out


def test_a_target_lists_the_recipes_that_reach_it(monkeypatch, capsys):
    out = estimated(monkeypatch, capsys, "--recipe", "rn50-16ep", "--target", "0.77")
    listed = out.partition("published top-1 of 77.0% or more")[2].partition("assumptions:")[0]
    for name in recipe_names():
        reaches = published_data(name) == IMAGENET_1K and (published_top1(name) or 0) >= 0.77
        assert (f"\n{name}," in listed) == reaches
        assert (f"\n  published: {published_line(name)}\n" in listed) == reaches


def test_a_published_accuracy_is_printed_with_its_conditions(monkeypatch, capsys):
    out = estimated(monkeypatch, capsys, "--recipe", "rn50-16ep", "--target", "0.76")
    (listed,) = re.findall(r"^rn50-32ep, 32 epochs, 76\.6%.*\n((?:  .*\n)+)", out, re.MULTILINE)
    said = " ".join(listed.split())
    assert "on 8 A100 with blurpool and flip averaging; not reproduced here" in said
    assert "differs here: no blurpool," in said
    assert said.endswith("norms of shortcuts and the classifier's bias do not decay")
    assert max(map(len, out.partition("assumptions:")[0].splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe rn50-16ep --instance g7.huge", "there is no price for 'g7.huge'"),
        ("--recipe rn50-16ep --instance p5.48xlarge --micro-batch 128", "speed of a H100"),
        ("--recipe rn50-16ep --nodes 2", "cannot be shared by 8 ranks"),
        ("--recipe rn50-16ep --micro-batch 100", "must be a multiple of"),
        ("--recipe rn50-16ep --target 76", "got 76"),
        ("--recipe rn50-16ep --nodes 0", "--nodes must be at least 1, got 0"),
        ("--recipe rn50-16ep --disk -1", "--disk must be a finite number above 0, got -1"),
        ("--recipe rn50-16ep --disk nan", "got nan"),
        ("--recipe rn50-16ep --price inf", "got inf"),
        ("--recipe rn50-16ep --images-per-second nan", "got nan"),
        ("--recipe rn50-16ep --target nan", "got nan"),
        ("--recipe rn50-16ep --measured pyproject.toml", "not valid JSON"),
        ("--recipe rn50-16ep --measured app", "app cannot be read"),
        ("--recipe rn50-16ep --prices app", "app cannot be read"),
        ("--recipe rn50-16ep --prices docs/none.yaml", "there is no file"),
        ("--recipe rn50-16ep --measured app/none.json", "there is no file"),
        ("--recipe rn50-16ep --images 0 5", "--images must be at least 1, got 0"),
        ("--recipe rn50-16ep --images 1000 50 --target 0.7", "--target 0.7"),
        ("--recipe rn50-16ep --shards app", "holds no manifest"),
        ("--recipe rn50-16ep --shards s3://bucket/shards", "is an address"),
        ("--recipe rn50-16ep --instance l4x4 --nodes 2", "network of several l4x4"),
        ("--recipe rn50-16ep --instance g4dn.12xlarge --precision bf16", "has no bf16"),
        ("--instance g6.12xlarge", "--recipes"),
        ("--recipe rn50-16ep --recipes", "exclude each other"),
        ("--recipes --plan", "--plan does not apply"),
        ("--recipes --measured doctor.json", "--measured does not apply"),
        ("--recipe rn50-16ep --markdown", "--markdown needs"),
        ("--recipe rn50-16ep --volume 500", "--volume needs --plan"),
        ("--recipe rn50-16ep --volume-gb 5", "--volume-gb needs --plan"),
        ("--recipe rn50-16ep --plan --target 0.7", "--target does not apply"),
        ("--recipe rn50-16ep --plan --download 0", "--download must be"),
        ("--recipe rn50-16ep --plan --images 1000 50", "downloads ImageNet-1k"),
        (
            "--recipe nvidia-90ep --instance g6.48xlarge --plan --nodes 2 --micro-batch 128",
            "one machine",
        ),
    ],
)
def test_what_cannot_be_estimated_exits_with_code_2(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        estimated(monkeypatch, capsys, *words.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_several_nodes_need_what_their_formulas_say(tmp_path):
    recipe = Recipe(global_batch=2048, micro_batch=128)
    needs = multi_node_needs(recipe, RATES, num_nodes=2, num_workers=8, network_gbps=8)
    assert needs["read_mib"] == pytest.approx(2000 * 1e5 / 2**20)
    assert needs["used_mib"] == needs["read_mib"] / 2
    assert needs["exchange_mb"] == pytest.approx(4 * NUM_PARAMETERS / 1e6)
    assert needs["exchange_seconds"] == pytest.approx(4 * NUM_PARAMETERS / 1e9)
    assert needs["step_seconds"] == pytest.approx(2048 / 2000)


def test_the_ranks_of_several_nodes_are_those_that_share_a_batch_equally(monkeypatch, capsys):
    words = "--recipe nvidia-90ep --micro-batch 128 --instance p4d.24xlarge --nodes 2".split()
    listed = re.search(r"ranks +([\d, ]+) give", estimated(monkeypatch, capsys, *words))
    assert listed
    recipe = load_recipe("nvidia-90ep").model_copy(update={"micro_batch": 128})
    ranks = [int(number) for number in listed[1].split(", ")]
    assert ranks == [1, 2, 4, 8, 16]
    assert all(recipe.accumulation(n) for n in ranks)


def test_the_computed_cache_is_the_one_that_the_loader_asks_for(tmp_path):
    train = write_shards(tmp_path, train=[10] * 60, validation=[1]).split(TRAIN)
    shard = max(shard.num_bytes for shard in train.shards)
    asked = least_cache_bytes(train, ShardShuffleSampler(train.shard_sizes, seed=0, window=32), 8)
    needs = multi_node_needs(Recipe(), replace(RATES, bytes_per_image=shard / 1251), 2, 8, 10)
    assert needs["cache_gb"] * 1e9 == pytest.approx(asked, rel=0.1)


def test_the_number_of_parameters_is_resnet_50s():
    wnids = tuple(f"n{number:08d}" for number in range(1000))
    model = build_model(Recipe().model, Classes(wnids, wnids))
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "digits"])
def test_every_recipe_can_be_estimated(name):
    recipe = load_recipe(name)
    gpus = max(n for n in (1, 4, 8) if recipe.global_batch // recipe.micro_batch % n == 0)
    instance = {1: "g6.2xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"}[gpus]
    text = format_estimate(make_estimate(name, recipe, load_prices(), Options(instance)), None)
    assert f"{name}: {recipe.epochs} epochs on 1 x {instance} (" in text
    assert "unknown: the recipe names" not in text


@pytest.mark.parametrize(("name", "most"), [("imagenet100-1h", 1.0), ("imagenette-10min", 10 / 60)])
def test_a_recipe_with_a_time_in_its_name_keeps_it_on_its_own_machine(name, most):
    found = make_estimate(name, load_recipe(name), load_prices(), Options())
    assert (found.instance.gpus, found.instance.gpu) == (1, "L4")
    assert most / 2 < duration(found.recipe, found.rates).hours <= most


def test_a_figure_is_not_promised_on_the_images_of_another_set():
    recipe = load_recipe("imagenet100-1h")
    found = make_estimate("imagenet100-1h", recipe, load_prices(), Options(images=(9469, 3925)))
    assert "unknown on these images; published on ImageNet-100" in format_estimate(found, None)


def test_a_measurement_prices_each_measured_precision(tmp_path):
    device = {"name": "NVIDIA L4", "steps": {"no": 100.0, "bf16": 300.0, "fp16": 0.0}, "size": 224}
    machine = {"memory_bytes": 2**38, "cores": 6}
    found = {"machine": machine, "devices": [device] * 2, "packed": None}
    (tmp_path / "doctor.json").write_text(json.dumps(found))
    options = Options(measured=tmp_path / "doctor.json", price=2.0, images=(1000, 100))
    recipe = Recipe(data=DataRecipe())
    text = format_estimate(make_estimate("mine", recipe, load_prices(), options), None)
    assert "6 vCPUs" in text
    assert "$2 an hour: --price" in text
    assert "600 images/s of 2 devices at 224 px: measured" in text
    assert "precision no " in text
    assert "precision fp16" not in text
    with pytest.raises(InputError, match="no speed in precision fp16"):
        make_estimate("m", recipe, load_prices(), replace(options, precision="fp16"))
    # The price is never that of another machine.
    with pytest.raises(InputError, match=r"2 NVIDIA L4\n"):
        make_estimate("m", recipe, load_prices(), replace(options, instance="g6.12xlarge"))
    with pytest.raises(InputError, match="the price of its machine"):
        make_estimate("m", recipe, load_prices(), replace(options, price=None))
    found["devices"] = [device] * 4
    (tmp_path / "doctor.json").write_text(json.dumps(found))
    known = replace(options, instance="g6.12xlarge", price=None)
    estimate = make_estimate("m", recipe, load_prices(), known)
    assert "g6.12xlarge: $4.6" in format_estimate(estimate, None)
    (tmp_path / "doctor.json").write_text("{}")
    with pytest.raises(InputError, match="is not a measurement"):
        make_estimate("m", recipe, load_prices(), options)


def test_the_speed_of_the_loader_is_the_one_that_its_benchmark_printed():
    found = json.loads((ROOT / "benchmarks/results/loaders.json").read_text(encoding="utf-8"))
    assert found["machine"].endswith(" 2 cores")
    assert LOADER_IMAGES_PER_CORE == round(found["medians"]["ours"]["images_per_s"] / 2)


def test_a_target_that_no_recipe_reaches_is_reported():
    found = make_estimate("rn50-16ep", load_recipe("rn50-16ep"), load_prices(), Options())
    assert "no recipe has a published top-1 of 99.0% or more" in format_estimate(found, 0.99)


@pytest.mark.parametrize(
    ("rate", "text"), [(0.34, "0.34"), (3.06, "3.1"), (10.4, "10"), (16621.0, "16,621")]
)
def test_rates_are_printed_with_their_significant_digits(rate, text):
    assert rate_text(rate) == text


@pytest.fixture
def one_gpu(tmp_path):
    """A measurement of a machine with one GPU, without shards."""
    device = {"name": "NVIDIA L4", "steps": {"bf16": 300.0}, "size": 224}
    machine = {"memory_bytes": 2**38, "cores": 6}
    found = {"machine": machine, "devices": [device], "packed": None}
    (tmp_path / "doctor.json").write_text(json.dumps(found))
    return ["--measured", str(tmp_path / "doctor.json"), "--price", "1"]


def test_the_flops_of_resnet_50_are_those_that_torch_counts():
    assert training_flops(ModelRecipe(), 224, 1000) == FLOPS_PER_IMAGE


def test_the_mfu_is_that_of_the_images_per_second_and_their_sizes(monkeypatch, capsys):
    words = "--recipe rn50-16ep --micro-batch 128 --instance p4d.24xlarge --disk 100000"
    out = estimated(monkeypatch, capsys, *words.split(), "--images-per-second", "14000")
    rows = {line[:38].strip(): line[38:].split()[:2] for line in out.splitlines()}
    # As many FLOPs a second at any size: what limits are the GPUs.
    full = f"{14_000 * FLOPS_PER_IMAGE / 8 / 312e12:.1%}"
    assert rows["crops of 224 px throughout"] == ["14,000", full]
    assert rows["crops of 192 px throughout"] == ["19,056", full]
    # The loader limits, so the GPUs wait: the MFU is of the wall clock.
    rate, mfu = rows["crops of 128 px throughout"]
    slower = int(rate.replace(",", "")) * FLOPS_PER_IMAGE * (128 / 224) ** 2 / 8 / 312e12
    assert mfu == f"{slower:.1%}" != full


def test_without_a_known_peak_or_model_there_is_no_mfu(monkeypatch, capsys, one_gpu):
    words = "--recipe digits --images 1437 360".split()
    out = estimated(monkeypatch, capsys, *words, *one_gpu)
    (row,) = (line for line in out.splitlines() if line.startswith("as asked"))
    assert row[38:].split()[1] == "-"


def test_images_are_those_of_the_shards_and_never_guessed(one_gpu, tmp_path, monkeypatch, capsys):
    write_shards(tmp_path / "shards", train=[8, 6], validation=[5])
    words = ["--recipe", "digits", *one_gpu]
    with pytest.raises(SystemExit):
        estimated(monkeypatch, capsys, *words)
    assert "--images 1281167 50000" in capsys.readouterr().err
    out = estimated(monkeypatch, capsys, *words, "--shards", str(tmp_path / "shards"))
    assert "14 training images, 5 in each epoch's evaluation" in out
    assert re.search(r"only \d+ optimizer steps", out)
    for of_imagenet in ("1,281,167", "47% of the bytes", "resized", "ILSVRC"):
        assert of_imagenet not in out
    (hours,) = re.findall(r"as asked +\S+ +\S+ +\S+ +(\S+)", out)
    assert 0 < float(hours) * 3600 < 14 * 12  # seconds, at 1 image/s
    assert "$0.00" not in out


def test_a_recipe_of_ones_own_asks_how_many_images_it_trains_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text("epochs: 3\n")
    with pytest.raises(SystemExit) as ended:
        estimated(monkeypatch, capsys, "--recipe", str(tmp_path / "mine.yaml"))
    assert ended.value.code == 2
    out = estimated(
        monkeypatch, capsys, "--recipe", str(tmp_path / "mine.yaml"), "--images", "9000", "1000"
    )
    assert "9,000 training images, 1,000 in each epoch's evaluation: --images" in out


def test_the_speed_of_resnet_50_is_not_that_of_another_model(monkeypatch, capsys):
    words = "--recipe digits --images 1437 360 --instance g6.2xlarge".split()
    with pytest.raises(SystemExit) as ended:
        estimated(monkeypatch, capsys, *words)
    assert ended.value.code == 2
    assert "ResNet-50" in capsys.readouterr().err
    out = estimated(monkeypatch, capsys, *words, "--images-per-second", "5000")
    assert "5,000 images/s of the GPUs at 224 px: --images-per-second" in out


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "digits"])
def test_the_images_of_a_recipe_with_a_published_figure_are_those_of_the_figure(name):
    options = Options(images_per_second=1e4)
    gpus = {1: "g6.2xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"}
    recipe = load_recipe(name)
    instance = gpus[max(n for n in gpus if recipe.global_batch // recipe.micro_batch % n == 0)]
    found = make_estimate(name, recipe, load_prices(), replace(options, instance=instance))
    expected = {"imagenet100-1h": (126_689, 5_000), "imagenette-10min": (9_469, 3_925)}
    counts = found.rates.num_train, found.rates.num_validation
    assert counts == expected.get(name, (1_281_167, 50_000))
