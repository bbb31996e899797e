"""ResNet-50 on ImageNet from streaming tar shards: packed once, trained exactly, published."""

import sys

if sys.platform == "win32":
    print("error: Windows is not supported\n  fix:      use WSL2: wsl --install", file=sys.stderr)
    raise SystemExit(2)

__version__ = "0.1.0"
