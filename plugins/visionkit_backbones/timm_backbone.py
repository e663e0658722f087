"""Any timm model that gives feature maps, as a backbone."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import model_entrypoint
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.norm import freeze_batch_norms
from visionkit.model import Backbone
from visionkit.types import FeatureSpec, Level
from visionkit_backbones.deformable import deform_stages

# Transformers that insist on the image size they were trained with, unless they are told otherwise.
_ANY_SIZE: Mapping[str, dict[str, Any]] = {
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "vision_transformer": {"dynamic_img_size": True},
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
}


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
        output_stride: int | None = None,
        pretrained: bool | str = False,
        frozen_stages: int = 0,
        frozen_bn: bool = False,
        stride_in_1x1: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        deformable_stages: Sequence[str] = (),
        modulated: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(model):
            near = difflib.get_close_matches(model, timm.list_models() + timm.list_pretrained(), n=3)
            raise UserError(f"timm has no model '{model}'" + (f"; nearest: {', '.join(near)}" if near else ""))
        options = {**_ANY_SIZE.get(model_entrypoint(model).__module__.rpartition(".")[2], {}), **(options or {})}
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
        _drop_unread_stages(self.body)
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
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up."""
        features = self.body(images)
        if self._channels_last_output:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return dict(zip(self.spec, features))

    def train(self, mode: bool = True) -> TimmBackbone:
        """As ever, but frozen stages stay in evaluation mode."""
        super().train(mode)
        frozen = set(self._frozen)
        for module in self._frozen:
            if frozen.issuperset(module.modules()):  # not the container that holds trained stages too
                module.training = False
        return self


def _create(model: str, options: Mapping[str, Any], pretrained: bool = False) -> Any:
    try:
        return timm.create_model(model, pretrained=pretrained, features_only=True, **options)
    except (TypeError, NotImplementedError, AssertionError, RuntimeError, ValueError, KeyError, OSError) as error:
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
    given = _read(path)
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
    return [name for name in weights if name not in whole and name.split(".")[0] in parts]


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"pretrained: no file '{path}'")
    try:
        state: dict[str, Any] = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # whatever a file that is none makes pickle, zip and safetensors say
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as weights: {reason}") from error
