"""From shards to batches: sampler, dataset, transforms, loader, cache."""
