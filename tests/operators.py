"""What torch launches: on a GPU each of these, and waiting for it, takes its time."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Notes the names of all operators that run while it is entered."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.names.append(operator.overloadpacket.__name__)
        return operator(*arguments, **(options or {}))
