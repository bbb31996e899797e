"""Training: the loop (trainer.py), its state, checkpoints, schedules and optimizer."""
