"""Training: fit (the loop), schedules, optimizer, checkpoints, journal."""
