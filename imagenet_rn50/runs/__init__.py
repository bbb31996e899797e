"""The run directory: written by training, read by evaluation and publishing."""
