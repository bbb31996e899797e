"""Sets how a Python process that has this folder on its path starts processes."""

import multiprocessing
import os

multiprocessing.set_start_method(os.environ["START_METHOD"])
