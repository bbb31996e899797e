from tests.training.conftest import tiny

__all__ = ["tiny"]
