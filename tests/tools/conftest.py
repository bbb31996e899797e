from tests.training.conftest import tiny, trainers

__all__ = ["tiny", "trainers"]
