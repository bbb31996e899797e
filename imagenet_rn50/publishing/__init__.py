"""Publishing: export, card, hub."""
