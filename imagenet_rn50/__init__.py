"""ResNet-50 on ImageNet from streaming tar shards: packed once, trained exactly, published."""

__version__ = "0.1.0"
