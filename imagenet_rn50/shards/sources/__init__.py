"""Sources: where images and their labels come from, read in place."""
