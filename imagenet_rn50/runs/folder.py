"""The run folder: everything that one run leaves behind, and the guard against mixing two runs.

RUN/
  recipe.yaml           the recipe as resolved, defaults included
  shards.json           which shards: name and digest of their manifest
  classes.json          the classes, so that a model can be exported without the shards
  metrics.jsonl         the truth; see journal
  logs.md  plots/       made from it
  tensorboard/          what Accelerate's tracker wrote
  checkpoints/          see checkpoint
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.classes import Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json, write_json, write_text
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.recipe_files import load_recipe
from imagenet_rn50.shards.manifest import Manifest

_RECIPE = "recipe.yaml"
_SHARDS = "shards.json"


def _is_foreign(path: Path) -> bool:
    """Says whether a file makes a folder something else than one that a run may begin in."""
    return not path.name.startswith("lr_finder.")  # which one looks for before the run


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds one run.

    Args:
        path: Where it is.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """Returns the recipe of the run.

        Raises:
            InputError: When the folder does not hold a run.
        """
        if not (self.path / _RECIPE).is_file():
            raise InputError(
                f"{self.path} holds no run",
                expected=f"a folder with {_RECIPE}, made by train_accelerate.py",
                found="no such file" if self.path.is_dir() else "no such folder",
            )
        return load_recipe(str(self.path / _RECIPE))

    def classes(self) -> Classes:
        """Returns the classes that the run's model tells apart."""
        return Classes.load(self.path)

    def check(self, recipe: Recipe, shards: Path) -> None:
        """Makes sure that a run of `recipe` over `shards` may begin or go on here; writes nothing.

        Raises:
            InputError: When the folder holds another recipe's run, a run over other shards, or
                files that are no run.
        """
        if not (self.path / _RECIPE).is_file():
            if self.path.is_dir() and any(map(_is_foreign, self.path.iterdir())):
                raise InputError(
                    f"{self.path} is not a run folder",
                    expected="a new or empty folder, or one with a run in it",
                    found=f"{sum(1 for _ in self.path.iterdir())} entries and no {_RECIPE}",
                    fix="name another folder with --run",
                )
            return
        differences = list(self.recipe().differences(recipe))
        if differences:
            raise InputError(
                f"{self.path} already holds the run of another recipe",
                expected="the recipe in its recipe.yaml",
                found="; ".join(differences) + "  (there -> asked for)",
                fix="name another folder with --run, or drop the changes",
            )
        there, digest = read_json(self.path / _SHARDS), Manifest.digest_of(shards)
        if there["digest"] != digest:
            raise InputError(
                f"{self.path} holds a run over other shards",
                expected=f"the shards of {there['dataset']} with digest {there['digest'][:12]}",
                found=f"digest {digest[:12]} in {shards}",
                fix="name those shards, or another folder with --run",
            )

    def create(self, recipe: Recipe, shards: Path, dataset: str, classes: Classes) -> None:
        """Writes what identifies a run, once; `recipe.yaml` comes last and makes it a run."""
        if (self.path / _RECIPE).is_file():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        classes.save(self.path)
        digest = Manifest.digest_of(shards)
        write_json(self.path / _SHARDS, {"dataset": dataset, "digest": digest})
        write_text(self.path / _RECIPE, recipe.to_yaml())
