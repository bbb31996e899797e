"""Sources: where pictures and their labels come from, read in place."""
