import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.training.progress import Progress, require_global_batch
from imagenet_rn50.utils.errors import InputError

sizes = st.integers(1, 200)


@given(samples=sizes, epochs=st.integers(1, 6), batch=st.integers(1, 64), seen=st.integers(0, 500))
def test_a_run_from_anywhere_ends_once_every_epoch_is_done(samples, epochs, batch, seen):
    progress = Progress(seen, samples, epochs, batch)
    total = progress.total_samples
    while not progress.finished:
        progress = progress.after_step()
    assert progress.samples_seen == max(total, seen)
    assert max(seen, epochs * samples) <= total < max(seen, epochs * samples) + batch


@given(samples=sizes, epochs=st.integers(1, 6), batch=st.integers(1, 300))
def test_each_epoch_end_is_met_exactly_and_none_twice(samples, epochs, batch):
    progress, ends = Progress(0, samples, epochs, batch), []
    while not progress.finished:
        epoch_end = progress.next_epoch_end
        progress = progress.after_step()
        if progress.samples_seen == epoch_end:
            ends.append(progress.samples_seen)
    boundaries = {-(-epoch * samples // batch) * batch for epoch in range(1, epochs + 1)}
    assert ends == sorted(boundaries)


@given(samples=sizes, world_size=st.integers(1, 8), micro=st.integers(1, 32))
def test_a_split_smaller_than_the_global_batch_is_refused_with_a_batch_that_fits(
    samples, world_size, micro
):
    recipe = Recipe(global_batch=256 * micro * world_size, micro_batch=micro)
    with pytest.raises(InputError, match=f"{samples} images") as refused:
        require_global_batch(recipe, samples, world_size)
    fix = re.search(r"--global-batch (\d+) --micro-batch (\d+)", str(refused.value))
    if fix is None:
        assert samples < world_size
        return
    fitting = Recipe(global_batch=int(fix[1]), micro_batch=int(fix[2]))
    fitting.accumulation(world_size)
    require_global_batch(fitting, samples, world_size)
