"""Trains as train_accelerate.py does, and notes which samples this rank was given.

accelerate launch ... -m tests.training.witness NOTES --recipe ... (the arguments of the script)
"""

import json
import os
import sys
from pathlib import Path

import train_accelerate
from imagenet_rn50.training.trainer import Trainer


def main():
    notes = Path(sys.argv.pop(1))
    make_loader = Trainer.train_loader

    def noting(trainer, start, stop):
        loader = make_loader(trainer, start, stop)
        count = loader._count_substitutions  # called with each batch that is handed out
        given = []

        def note(batch):
            given.append(batch.indices.tolist())
            (notes / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(given))
            count(batch)

        loader._count_substitutions = note  # type: ignore[method-assign]
        return loader

    Trainer.train_loader = noting  # type: ignore[method-assign]
    train_accelerate.main()


if __name__ == "__main__":
    main()
