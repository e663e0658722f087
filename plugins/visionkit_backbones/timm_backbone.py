"""Any timm model that gives feature maps, as a backbone."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.norm import freeze_batch_norms
from visionkit.model import Backbone
from visionkit.model.importing import read_state
from visionkit.numbers import Count, OnlyWith, RGBScale
from visionkit.types import FeatureSpec, Level
from visionkit_backbones.deformable import deform_stages

# Arguments by which a family of transformers takes images of any size; each family knows one of them.
_ANY_SIZE: tuple[Mapping[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True})

# Arguments of ``timm.create_model`` that the backbone sets itself or that do nothing to feature maps.
_NOT_OPTIONS = ("pretrained", "features_only", "out_indices", "output_stride", "in_chans", "num_classes")


class TimmBackbone(Backbone):
    """A timm model by name.

    Levels are ``c1`` ... ``c5`` by the stride that they have in the undilated network (2 ... 32); where a model gives
    several maps of one stride, the deepest is taken. Stages deeper than the deepest level that is read are not built.
    Some families round sizes down where ResNets round up, so sides should be multiples of 32 (loaders pad them so).

    Args:
        model: timm's name of it (``resnet50``, ``convnext_tiny.fb_in1k`` ...).
        levels: names of the levels that are read; ``None``: all.
        output_stride: dilate the deep stages instead of striding beyond this (8 or 16; ResNets, ConvNeXts and others).
        pretrained: ``True`` for timm's own weights (fetched once, then from its cache), or a local ``.safetensors``,
            ``.pth`` or ``.pt`` file with timm's names (torchvision's are the same for ResNets).
        frozen_stages: take the stem and the first so many stages (from stride 4 on) out of training, with their batch
            norm statistics; 0 freezes nothing. Mask R-CNN's usual choice is 1.
        frozen_bn: make all batch norms fixed affine maps, which are neither trained nor counted.
        stride_in_1x1: let the bottlenecks of a ResNet stride in their first convolution, as in the paper (He et al.,
            CVPR 2016) and in the weights of Caffe and detectron2; timm and torchvision stride in the second.
        mean, std: what pixels (0 ... 1, RGB) are normalised with, where weights want other numbers than timm's.
        deformable_stages: levels (``c3``, ``c4``, ``c5`` ...) in whose stages the last 3x3 convolution of every block
            is deformable; of ResNets (Dai et al., ICCV 2017).
        modulated: let these also weigh what they read (Zhu et al., CVPR 2019).
        options: further arguments of ``timm.create_model`` (``drop_path_rate`` ...).

    Raises:
        UserError: a model that timm does not know or that gives no feature maps, an output stride that it does not
            support, a level that it does not have, a weights file that is missing, broken or of another model.
    """

    def __init__(
        self,
        *,
        model: str,
        levels: Collection[str] | None = None,
        output_stride: Literal[8, 16, 32] | None = None,
        pretrained: bool | str = False,
        frozen_stages: Count = 0,
        frozen_bn: bool = False,
        stride_in_1x1: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: RGBScale | None = None,
        deformable_stages: Sequence[str] = (),
        modulated: Annotated[bool, OnlyWith("deformable_stages")] = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(model):
            near = difflib.get_close_matches(model, timm.list_models() + timm.list_pretrained(), n=3)
            raise UserError(f"timm has no model '{model}'" + (f"; nearest: {', '.join(near)}" if near else ""))
        if unknown := [key for key in options or () if key in _NOT_OPTIONS]:
            own = {"output_stride": "it is a key of the backbone", "pretrained": "it is a key of the backbone"}
            why = own.get(unknown[0], "images have three channels, and the feature levels follow from the heads")
            raise UserError(f"options: '{unknown[0]}' cannot be given here: {why}")
        options = _for_any_size(model, dict(options or {}))
        with torch.device("meta"):
            info = _create(model, options).feature_info
        indices = {f"c{stride.bit_length() - 1}": i for stride, i in zip(info.reduction(), info.out_indices)}
        if levels is not None and (unknown := sorted(set(levels) - set(indices))):
            raise UserError(f"{model} has no level '{unknown[0]}' (it has: {', '.join(indices)})")
        names = [name for name in indices if levels is None or name in levels]
        if not names:
            raise UserError(f"levels: none of {model} is read (it has: {', '.join(indices)})")

        options["out_indices"] = tuple(indices[name] for name in names)
        if output_stride is not None:
            options["output_stride"] = output_stride
        built_for_its_spec_only = torch.get_default_device().type == "meta"
        self.body = _create(model, options, pretrained is True and not built_for_its_spec_only)
        self._model, self._options = model, options
        _drop_unread_stages(self.body)
        for module in self.body.modules():
            if type(module) is nn.Conv2d and _StridedPointwise.suits(module):
                module.__class__ = _StridedPointwise
        built = self.body.feature_info
        if output_stride is not None and max(built.reduction()) > output_stride:
            raise UserError(f"output_stride: {model} has stride {max(built.reduction())} whatever is asked for")
        self.spec = FeatureSpec({n: Level(*v) for n, v in zip(names, zip(built.channels(), built.reduction()))})
        self._channels_last_output = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        config: Any = timm.get_pretrained_cfg(model)
        if config is not None:
            self.mean, self.std = tuple(config.mean), tuple(config.std)
        self.mean, self.std = mean or self.mean, std or self.std

        if isinstance(pretrained, str) and not built_for_its_spec_only:
            load_weights(self.body, Path(pretrained), model)
        if frozen_bn:
            freeze_batch_norms(self.body)
        if stride_in_1x1:
            _stride_in_1x1(self.body, model)
        deform_stages(self.body, model, deformable_stages, modulated)
        stages = [info.module_name(i) for name, i in indices.items() if int(name[1:]) >= 2]
        if not 0 <= frozen_stages <= len(stages):
            raise UserError(
                f"frozen_stages: {model} has {len(stages)} stages, so 0 to {len(stages)}, not {frozen_stages}"
            )
        self._frozen = _up_to(self.body, stages[frozen_stages - 1]) if frozen_stages else []
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up.

        Raises:
            UserError: images of a size that the model does not accept; the message says which ones it does.
        """
        try:
            features = self.body(images)
        except Exception as error:
            if refusal := size_refusal(self._model, self._options, (images.shape[2], images.shape[3])):
                raise UserError(refusal) from error
            raise
        if self._channels_last_output:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return {name: _cover_image(x, images, level.stride) for (name, level), x in zip(self.spec.items(), features)}

    def train(self, mode: bool = True) -> TimmBackbone:
        """As ever, but frozen stages stay in evaluation mode."""
        super().train(mode)
        frozen = set(self._frozen)
        for module in self._frozen:
            if frozen.issuperset(module.modules()):  # not the container that holds trained stages too
                module.training = False
        return self


class _StridedPointwise(nn.Conv2d):
    """A 1x1 convolution of a few channels that leaves cells out before it computes.

    In PyTorch 2.15 on a CPU, the gradient of one with three channels, a stride of 2 and channels-last memory (RepVGG,
    MobileOne) writes beyond its memory.
    """

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        form = (conv.kernel_size, conv.padding, conv.groups)
        return form == ((1, 1), (0, 0), 1) and conv.stride != (1, 1) and conv.in_channels < 16

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight, self.bias)


def _cover_image(x: Tensor, images: Tensor, stride: int) -> Tensor:
    # A few models resize their input (CrossViT) or lose its border in convolutions without padding (Inception). Cell
    # (i, j) of a level must still lie at pixel stride * (i, j).
    height, width = -(-images.shape[2] // stride), -(-images.shape[3] // stride)
    if abs(x.shape[2] - height) <= 1 and abs(x.shape[3] - width) <= 1:
        return x
    return F.interpolate(x, (height, width), mode="bilinear")


def _for_any_size(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` with the argument that makes a model accept images of any size, if it needs and has one."""
    config: Any = timm.get_pretrained_cfg(model)
    if config is None or not config.fixed_input_size:
        return options
    for more in _ANY_SIZE:
        try:
            with torch.device("meta"):
                timm.create_model(model, features_only=True, **{**more, **options})
        except Exception:
            continue
        return {**more, **options}
    return options


def size_refusal(model: str, options: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    """Why a model does not accept images of this size (height, width), and which sizes it accepts; ``None`` if it does.

    Sizes are tried on the meta device, at no cost but time.
    """
    if _accepts(model, options, size):
        return None
    config: Any = timm.get_pretrained_cfg(model)
    side = options.get("img_size", config.input_size[1:] if config is not None else 224)
    native = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    text = f"{model} does not accept images of {size[0]}x{size[1]} pixels"
    for divisor in (14, 16, 28, 32, 64, 112, 128, 224, 256):
        sides = [divisor * (max(128 // divisor, 1) + i) for i in range(3)]
        if any(side % divisor for side in size) and _accepts(
            model, options, (sides[0], sides[1]), (sides[2], sides[1])
        ):
            return f"{text}, only sides that are multiples of {divisor}: set train.size_divisor: {divisor}"
    if not _accepts(model, options, native):
        return None
    text += f", only of {native[0]}x{native[1]}"
    if _accepts(model, {**options, "img_size": size}, size):
        return f"{text}: resize or crop them to that size, or set options: {{img_size: [{size[0]}, {size[1]}]}}"
    return f"{text}: resize or crop them to that size"


def _accepts(model: str, options: Mapping[str, Any], *sizes: tuple[int, int]) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            body = timm.create_model(model, features_only=True, **options).eval()
            for height, width in sizes:
                body(torch.zeros(1, 3, height, width))
    except Exception:
        return False
    return True


def _create(model: str, options: Mapping[str, Any], pretrained: bool = False) -> Any:
    try:
        return timm.create_model(model, pretrained=pretrained, features_only=True, **options)
    except Exception as error:
        # timm's families refuse an argument each in their own way; which argument it was can only be guessed at.
        reason = str(error).strip() or type(error).__name__
        if options.get("output_stride") in (8, 16, 32) and not pretrained:
            reason = "timm does not dilate the stages of this family"
        given = ", ".join(f"{k}={v!r}" for k, v in options.items() if k != "out_indices")
        raise UserError(
            f"timm cannot build '{model}' for feature maps"
            + (f" with {given}" if given else "")
            + (" and its pretrained weights" if pretrained else "")
            + f": {reason}"
        ) from error


def _stride_in_1x1(body: nn.Module, model: str) -> None:
    bottlenecks = [module for module in body.modules() if isinstance(module, Bottleneck)]
    if not bottlenecks:
        raise UserError(f"stride_in_1x1: {model} has no bottlenecks of a ResNet")
    for block in bottlenecks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _drop_unread_stages(body: Any) -> None:
    # EfficientNet and MobileNet extractors keep every stage, whatever is read of them.
    last = body.feature_info.get_dicts()[-1]
    if "stage" in last and isinstance(getattr(body, "blocks", None), nn.Sequential):
        del body.blocks[last["stage"] :]


def _plain(name: str) -> str:
    # Feature extractors rename what they take over: stages.0 becomes stages_0, blocks.0 becomes model.blocks.0.
    return name.removeprefix("model.").replace(".", "_")


def _up_to(body: nn.Module, stage: str) -> list[nn.Module]:
    """Every module from the stem to the end of ``stage``, in the order in which they are registered and run."""
    modules = list(body.named_modules())
    end = _plain(stage)
    last = max((i for i, (n, _) in enumerate(modules) if f"{_plain(n)}_".startswith(f"{end}_")), default=-1)
    return [module for _, module in (modules[: last + 1] if last >= 0 else modules)]


def load_weights(body: nn.Module, path: Path, model: str) -> None:
    """Fill a timm feature extractor from a local state dict.

    Tensors of the classifier and of stages that are not built are passed over.

    Raises:
        UserError: no such file, not a state dict, or one of another model; the first few differences are named.
    """
    if not path.is_file():
        raise UserError(f"pretrained: no file '{path}'")
    with torch.device("meta"):
        names = {*body.state_dict(), *timm.create_model(model).state_dict()}
    given = read_state(path, names)
    mine = {_plain(name): (name, tensor) for name, tensor in body.state_dict().items()}
    state = {mine[plain][0]: t for n, t in given.items() if (plain := _plain(n)) in mine}
    wrong = [f"{n} is missing" for n, _ in mine.values() if n not in state and not n.endswith("num_batches_tracked")]
    for name, tensor in mine.values():
        if name in state and state[name].shape != tensor.shape:
            wrong.append(f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
    wrong += [f"{name} is too many" for name in _strangers(given, mine, model)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path}: not the weights of {model}: {'; '.join(wrong[:3])}{more}")
    body.load_state_dict(state, strict=False)


def _strangers(given: Collection[str], mine: Collection[str], model: str) -> list[str]:
    """Weights inside a part that is built here but not of this model: those of a deeper sister (ResNet-101 for 50)."""
    with torch.device("meta"):
        whole = timm.create_model(model).state_dict()
    parts = {name.split(".")[0] for name in whole if _plain(name) in mine}
    weights = [name for name in given if name.endswith((".weight", ".bias"))]
    return [n for n in weights if n not in whole and _plain(n) not in mine and n.split(".")[0] in parts]
