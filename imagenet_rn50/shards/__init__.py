"""Shards: sources -> images (inspect, repair) -> packing -> manifest."""
