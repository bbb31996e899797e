"""Settings of all tests."""

from hypothesis import settings

# Speed is shown by benchmarks; a busy machine makes no property false.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
