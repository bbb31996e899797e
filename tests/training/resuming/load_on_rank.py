"""One rank that loads a checkpoint with `accelerator.load_state` and compares all of its state."""

import sys
from pathlib import Path

from imagenet_rn50.runs.checkpoint import EMA_WEIGHTS, WEIGHTS, folder_name
from imagenet_rn50.training.state import OPTIMIZER, PROGRESS, SCALER, write_state
from imagenet_rn50.utils.files import read_json, sha256_of_file
from tests.training.resuming.support import build


def main(tiny: Path, checkpoint: Path) -> None:
    trainer = build(tiny, checkpoint.parents[1], create=False)
    accelerator = trainer.accelerator
    accelerator.load_state(str(checkpoint))
    state = trainer.state
    assert folder_name(state.progress.samples_seen) == checkpoint.name
    assert state.ema is not None
    # What this rank would save now is what it loaded, to the last byte.
    out = checkpoint.parents[1] / f"loaded-{accelerator.process_index}"
    out.mkdir()
    write_state(out, state.state_dict())
    for name in (WEIGHTS, EMA_WEIGHTS, OPTIMIZER, SCALER, PROGRESS):
        assert sha256_of_file(out / name) == sha256_of_file(checkpoint / name), name
    assert read_json(out / PROGRESS)["samples_seen"] == state.progress.samples_seen
    print(f"equal on {accelerator.num_processes} ranks")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
