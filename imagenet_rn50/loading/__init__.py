"""Loading: order (pure) -> reader -> transforms -> loader."""
