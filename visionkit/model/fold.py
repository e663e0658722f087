"""Batch norms folded into the convolutions before them: the same results from fewer passes over the features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from visionkit.layers.fast_conv import FastConv2d
from visionkit.layers.norm import FrozenBatchNorm2d, JoinedConv2d, join
from visionkit.model.base import Backbone
from visionkit.model.graph import MultiTaskModel
from visionkit.types import ImageInfo, MixedBatch

# All have the arguments (input, weight, bias, mean, variance, training, ...), but for the second, which never trains.
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm")


@torch.no_grad()
def fold_batch_norms(model: MultiTaskModel, size: tuple[int, int] = (128, 128)) -> int:
    """Fold every batch norm of a model in evaluation mode that can be; in place, and for prediction only.

    What does not run for an empty image stays as it is. Equal up to rounding, about 1e-5 of the values' size.

    Args:
        model: its parameters are changed, and its batch norms replaced by the activations that they carry.
        size: (height, width) of the image.

    Returns:
        How many were folded; 0 for a model that takes no images of this size.
    """
    images = torch.zeros(1, 3, *size, device=model.get_buffer("mean").device)
    batch = MixedBatch(images, (ImageInfo(0, "", size, size),), {})
    replaced: dict[nn.Module, nn.Module] = {}
    for convolution, norm in _partners(model, lambda: model.predict(batch)):
        _fold(convolution, norm)
        replaced[norm] = _after(norm) or nn.Identity()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replaced:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, replaced[module])
    return len(replaced)


@torch.no_grad()
def join_frozen_norms(backbone: Backbone, size: tuple[int, int] = (64, 64)) -> int:
    """Let convolutions do the work of the frozen batch norms behind them while gradients are computed; in place.

    Returns:
        How many do; 0 for a backbone that takes no images of this size.
    """
    if not any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()):
        return 0
    training, device = backbone.training, next(backbone.buffers()).device
    backbone.eval()
    pairs = _partners(backbone, lambda: backbone(torch.zeros(1, 3, *size, device=device)))
    backbone.train(training)
    pairs = [(conv, norm) for conv, norm in pairs if isinstance(norm, FrozenBatchNorm2d) and not conv.transposed]
    for conv, norm in pairs:
        join(conv, norm)
    return len(pairs)


def _partners(model: nn.Module, run: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """Convolutions, each with the batch norm that can be folded into it.

    One empty image is sent through the model by ``run``, and what happens to it is watched: the batch norm reads the
    convolution's result, nothing else does, and neither has another partner. So modules may have any form and name.
    """
    owners = Counter(id(m.weight) for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor))
    convolutions = {id(m.weight): m for m in model.modules() if _is_foldable(m) and owners[id(m.weight)] == 1}
    norms = {id(m.running_mean): m for m in model.modules() if _after(m) is not None}
    try:
        with _Watch() as watch:
            run()
    except (RuntimeError, ValueError, AssertionError):  # a network for images of one other size
        return []
    partners = Counter(one for pair in watch.pairs for one in pair)
    return [
        (convolutions[weight], norms[mean])
        for weight, mean in watch.pairs
        if weight in convolutions and mean in norms and weight not in watch.read_elsewhere
        and partners[weight] == partners[mean] == 1
    ]  # fmt: skip


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
    plain = type(module) in (nn.Conv2d, FastConv2d, JoinedConv2d)
    return (plain or (type(module) is nn.ConvTranspose2d and module.groups == 1)) and not _is_hooked(module)


def _is_hooked(module: nn.Module) -> bool:
    """Someone wants to see what goes in or comes out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(convolution: Any, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
        transpose=convolution.transposed,
    )  # fmt: skip
    if isinstance(convolution, JoinedConv2d):
        convolution.norms = ()


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
