"""The Space: imports nothing of the package, and could stand alone."""
