"""What torch launches: on a GPU each of these, and waiting for it, takes its time."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operators(TorchDispatchMode):
    """Notes the names of all operators that run while it is entered."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.names.append(operator.overloadpacket.__name__)
        return operator(*arguments, **(options or {}))


class OtherDevice(TorchDispatchMode):
    """Use torch's "meta" device as a stand-in for Apple's mps.

    It has no float64, and non-blocking copies from or to it are errors, because their content
    would be undefined. Copies from it are zeros.
    """

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name, options = operator.overloadpacket.__name__, options or {}
        tensors = [value for value in tree_leaves(arguments) if isinstance(value, torch.Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            if name == "_local_scalar_dense":
                return 0
            if name == "_to_copy" and options.get("device") == torch.device("cpu"):
                assert not options.get("non_blocking")
                return torch.zeros_like(tensors[0], device="cpu")
            if name == "copy_" and not tensors[0].is_meta:
                assert not any(arguments[2:]), "non-blocking copy"
                return tensors[0].zero_()
        result = operator(*arguments, **options)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                assert not (name == "_to_copy" and options.get("non_blocking"))
                if tensor.dtype == torch.float64:
                    raise TypeError("mps has no float64")
        return result
