"""A small model with ten classes, and the Space serving it in its own process."""

import pytest
import torch
from PIL import Image

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_model, build_processor
from imagenet_rn50.recipe import load_recipe
from tests.app.serving import STARTER, serve
from tests.support import write_recipe

# Class names that need escaping: markup, quotes, JavaScript and Handlebars placeholders.
NAMES = (
    *(
        "tabby, tabby cat",
        "<b>bold</b>",
        '"quoted"',
        "${1 + 1}",
        "{{value}}",
        "crane",
        "crane bird",
    ),
    *("<img src=x onerror=alert(1)>", "ångström", "a name that goes on and on " * 4),
)

CARD = """\
---
license: apache-2.0
---
# A card

| data | top-1 |
|---|---:|
| tiny | 12.5% |

![loss over epochs](plots/loss.png)
![a plot](https://outside.example/plot.png)
<img src="https://outside.example/tracker.gif"><script>window.stolen = 1</script>
[a link](https://outside.example/)
"""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """An exported model whose random weights give images different classes."""
    folder = tmp_path_factory.mktemp("model")
    recipe = load_recipe(str(write_recipe(folder)))
    wnids = tuple(f"n{index:08d}" for index in range(len(NAMES)))
    torch.manual_seed(0)
    model = build_model(recipe.model, Classes(wnids=wnids, names=NAMES))
    model.get_parameter("classifier.1.weight").data.mul_(20)
    model.save_pretrained(folder)
    build_processor(recipe.data).save_pretrained(folder)
    (folder / "plots").mkdir()
    Image.new("RGB", (600, 400), "white").save(folder / "plots" / "loss.png")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def space(model_folder, tmp_path_factory, pytestconfig):
    """The Space, served from a copy of app/."""
    starter = pytestconfig.stash[STARTER]
    with serve(tmp_path_factory.mktemp("space"), starter, MODEL_ID=str(model_folder)) as served:
        yield served
