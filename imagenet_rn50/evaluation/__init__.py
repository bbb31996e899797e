"""Evaluation: exact counts, and the models and shards that they are counted over."""
