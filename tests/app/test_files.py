"""app/ is complete: it can be uploaded to Hugging Face as it is."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
APP = ROOT / "app"
EXAMPLES = sorted((APP / "examples").glob("*.jpg"))


def pins(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-")))


@pytest.fixture
def front_matter():
    _, matter, _ = (APP / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_front_matter_is_valid_for_hugging_face(front_matter):
    assert front_matter["sdk"] == "gradio"
    assert front_matter["sdk_version"] == pins(APP / "requirements.txt")["gradio"]
    assert (APP / front_matter["app_file"]).is_file()
    assert front_matter["python_version"] == "3.11"
    assert front_matter["license"] == "apache-2.0"
    assert len(front_matter["short_description"]) <= 60
    assert {"title", "emoji", "colorFrom", "colorTo", "models", "preload_from_hub"} <= set(
        front_matter
    )


def test_the_space_pins_the_versions_that_are_tested():
    tested = pins(ROOT / "requirements.txt")
    assert {name: tested[name] for name in pins(APP / "requirements.txt")} == pins(
        APP / "requirements.txt"
    )


def test_each_example_is_small_and_has_a_license():
    attribution = (APP / "examples" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 4
    for path in EXAMPLES:
        (line,) = (line for line in attribution.splitlines() if f"`{path.name}`" in line)
        assert "CC0" in line or "public domain" in line
        assert path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert max(image.size) <= 512
            assert not image.getexif()
