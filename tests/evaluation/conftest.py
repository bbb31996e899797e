"""Settings of the tests of evaluation."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _fresh_state():
    """Forget the processes that the test joined, for tests of this worker that train."""
    yield
    AcceleratorState._reset_state(True)
