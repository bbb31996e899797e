"""The machine: what it can do, measured; and what a run on it would take and cost, computed."""
