from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.training.state import Progress

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
