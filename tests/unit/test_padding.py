"""Images that a batch pads: what they are padded with takes no part in anything that is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config import parse_pipeline
from visionkit.data import Sample
from visionkit.data.loader import collate
from visionkit.layers.regions import adaptive_average, blank_padding, continue_edges, image_regions, stretch
from visionkit.model import Head
from visionkit.model.build import build_model
from visionkit.model.refine import predict_refined
from visionkit.plugins import PluginManager
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, Level, MixedBatch
from visionkit_semantic.deeplab_v3 import DeepLabV3
from visionkit_semantic.pspnet import PSPNet

SIZES = [(5, 7), (1, 3), (9, 2), (9, 11)]
REGIONS = torch.tensor(SIZES)
LABELS = LabelSet(("a", "b", "c", "d"))


def infos(sizes: Sequence[tuple[int, int]]) -> tuple[ImageInfo, ...]:
    return tuple(ImageInfo(i, "", size, size) for i, size in enumerate(sizes))


def cut(x: Tensor, row: int) -> Tensor:
    return x[row : row + 1, :, : SIZES[row][0], : SIZES[row][1]]


def test_regions_are_sizes_in_cells_rounded_up() -> None:
    x = torch.zeros(3, 1, 8, 12)
    regions = image_regions(infos([(33, 96), (64, 1), (200, 40)]), 8, x)
    assert regions is not None
    assert regions.tolist() == [[5, 12], [8, 1], [8, 5]]
    assert image_regions(infos([(64, 96), (57, 89)]), 8, x) is None


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_averages_and_their_stretching_are_those_of_each_image(bins: int) -> None:
    x, small = torch.randn(4, 3, 9, 11), torch.randn(4, 3, bins, bins)
    pooled = adaptive_average(x, bins, REGIONS)
    large = {align: stretch(small, (9, 11), REGIONS, align) for align in ("stretch", "ends")}
    for row, size in enumerate(SIZES):
        torch.testing.assert_close(pooled[row], F.adaptive_avg_pool2d(cut(x, row), bins)[0])
        for align, made in large.items():
            expected = F.interpolate(small[row : row + 1], size, mode="bilinear", align_corners=align == "ends")
            torch.testing.assert_close(cut(made, row), expected)
    assert torch.equal(adaptive_average(x, bins, None), F.adaptive_avg_pool2d(x, bins))


def test_padding_is_blanked_or_filled_from_the_edges() -> None:
    x = torch.randn(4, 2, 9, 11)
    blank, filled = blank_padding(x, REGIONS), continue_edges(x, REGIONS)
    for row, (height, width) in enumerate(SIZES):
        assert torch.equal(cut(blank, row), cut(x, row))
        assert torch.equal(cut(filled, row), cut(x, row))
        assert not blank[row, :, height:].any()
        assert not blank[row, :, :, width:].any()
        expected = F.pad(cut(x, row), (0, 11 - width, 0, 9 - height), mode="replicate")
        assert torch.equal(filled[row : row + 1], expected)
    assert blank_padding(x, None) is continue_edges(x, None) is x


@pytest.mark.parametrize("align", ["cells", "corners"])
@pytest.mark.parametrize(("kind", "arguments"), [(DeepLabV3, {"hidden": True}), (PSPNet, {"auxiliary": None})])
def test_pooled_heads_score_an_image_as_they_do_alone(kind: type[Head], arguments: dict[str, Any], align: str) -> None:
    torch.manual_seed(0)
    head = kind(FeatureSpec({"c5": Level(8, 16)}), LABELS, align=align, **arguments).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):  # padding has other values than 0
            nn.init.normal_(module.bias)
    x = torch.randn(2, 8, 6, 12)
    sizes = [(96, 192), (64, 96)] if align != "corners" else [(81, 177), (49, 81)]
    beside = head({"c5": x}, Batch(torch.zeros(2, 3, *sizes[0]), infos(sizes)), {}).logits
    cells = tuple(-(-side // 16) for side in sizes[1])
    one = x[1:, :, : cells[0], : cells[1]]
    alone = head({"c5": one}, Batch(torch.zeros(1, 3, *sizes[1]), infos(sizes[1:])), {}).logits
    height, width = alone.shape[-2:]
    torch.testing.assert_close(beside[1:, :, :height, :width], alone)


HEADS = {
    "semantic_fpn": "{}",
    "fcn": "{}",
    "unet": "{}",
    "xception_unet": "{}",
    "dilated_context": "{}",
    "deeplab_largefov": "{hidden: 16}",
    "deeplab_v2": "{}",
    "deeplab_v3": "{channels: 16}",
    "deeplab_v3plus": "{channels: 16}",
    "pspnet": "{hidden: 16}",
}


def batch_of(images: Sequence[Tensor], model: Any) -> MixedBatch:
    samples = [Sample(image, info) for image, info in zip(images, infos([tuple(i.shape[1:]) for i in images]))]
    return collate(samples, heads=list(HEADS)).normalised(model.mean, model.std)


def test_predictions_of_an_image_are_the_same_alone_and_in_any_batch() -> None:
    torch.manual_seed(0)
    backbone = "{name: timm, model: resnet18, options: {channels: [8, 8, 16, 16]}}"
    heads = ", ".join(f"{name}: {{name: {name}, {arguments[1:]}" for name, arguments in HEADS.items())
    pipeline = parse_pipeline(f"backbone: {backbone}\nneck: {{name: fpn, channels: 8}}\nheads: {{{heads}}}")
    model = build_model(pipeline, PluginManager(), dict.fromkeys(HEADS, LABELS))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    model.eval()
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in [(64, 64), (64, 192), (90, 40), (60, 33)]
    ]
    beside = predict_refined(model, batch_of(images, model), list(HEADS), {})
    for row, image in enumerate(images):
        alone = predict_refined(model, batch_of([image], model), list(HEADS), {})
        for head in HEADS:
            same = alone[head][0].labels == beside[head][row].labels
            assert same.float().mean() > 0.999, head
