"""Batch norms folded into the convolutions before them: the same predictions from fewer passes over the features."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from visionkit.layers.norm import FrozenBatchNorm2d
from visionkit.layers.winograd import WinogradConv2d
from visionkit.model.graph import MultiTaskModel
from visionkit.types import ImageInfo, MixedBatch

# All have the arguments (input, weight, bias, mean, variance, training, ...), but for the second, which never trains.
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm")


@torch.no_grad()
def fold_batch_norms(model: MultiTaskModel, size: tuple[int, int] = (128, 128)) -> int:
    """Fold every batch norm of a model in evaluation mode that can be; in place, and for prediction only.

    One empty image is sent through the model, and what happens to it is watched: a batch norm is folded into a
    convolution if it reads the convolution's result, nothing else does, and either has no other partner. So modules
    may have any form and name. What does not run for an empty image stays as it is. Equal up to rounding, about 1e-5
    of the values' size.

    Args:
        model: its parameters are changed, and its batch norms replaced by the activations that they carry.
        size: (height, width) of the image.

    Returns:
        How many were folded; 0 for a model that takes no images of this size.
    """
    owners = Counter(id(m.weight) for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor))
    convolutions = {id(m.weight): m for m in model.modules() if _is_foldable(m) and owners[id(m.weight)] == 1}
    norms = {id(m.running_mean): m for m in model.modules() if _after(m) is not None}
    device = model.get_buffer("mean").device
    images = torch.zeros(1, 3, *size, device=device)
    try:
        with _Watch() as watch:
            model.predict(MixedBatch(images, (ImageInfo(0, "", size, size),), {}))
    except (RuntimeError, ValueError, AssertionError):  # a network for images of one other size
        return 0
    partners = Counter(one for pair in watch.pairs for one in pair)
    replaced: dict[nn.Module, nn.Module] = {}
    for weight, mean in watch.pairs:
        alone = partners[weight] == partners[mean] == 1 and weight not in watch.read_elsewhere
        if alone and weight in convolutions and mean in norms:
            _fold(convolutions[weight], norms[mean])
            replaced[norms[mean]] = _after(norms[mean]) or nn.Identity()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replaced:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, replaced[module])
    return len(replaced)


def _after(norm: nn.Module) -> nn.Module | None:
    """What is left of a batch norm once it is folded; ``None`` for a module that is none, or of an unknown kind."""
    if _is_hooked(norm):
        return None
    if type(norm) is nn.BatchNorm2d and norm.track_running_stats:
        return nn.Identity()
    if type(norm) is FrozenBatchNorm2d:
        return norm.act or nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d" and getattr(norm, "track_running_stats", False):  # timm's
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return None


def _is_foldable(module: nn.Module) -> bool:
    """Exactly these classes: one that makes its weight anew at every call would not notice."""
    plain = type(module) in (nn.Conv2d, WinogradConv2d) or (type(module) is nn.ConvTranspose2d and module.groups == 1)
    return plain and not _is_hooked(module)


def _is_hooked(module: nn.Module) -> bool:
    """Someone wants to see what goes in or comes out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(convolution: Any, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
        transpose=convolution.transposed,
    )  # fmt: skip


class _Watch(TorchDispatchMode):
    """Which convolution's result goes into which batch norm, by ``id`` of the weight and of the running mean.

    Attributes:
        pairs: (weight, mean).
        read_elsewhere: weights of convolutions whose results something else reads too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, int]] = {}  # tensors are kept, lest an id be given twice
        self.pairs: set[tuple[int, int]] = set()
        self.read_elsewhere: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        read = [self.made[id(t)][1] for t in tree_leaves((args, kwargs)) if id(t) in self.made]
        if name in _NORMS and id(args[0]) in self.made and len(read) == 1 and args[5] is not True:
            self.pairs.add((read[0], id(args[3])))
        else:
            self.read_elsewhere.update(read)
        result = func(*args, **(kwargs or {}))
        if name == "convolution":
            self.made[id(result)] = (result, id(args[1]))
        return result
