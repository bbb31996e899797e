"""Runs: what a run leaves behind. Training writes it; export, card and people read it."""
