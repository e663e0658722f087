"""Fast style transfer: the authors' network, and losses that follow content and style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.errors import DataError
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, PictureTarget
from visionkit_translation.perceptual import gram
from visionkit_translation.pictures import PictureOutput
from visionkit_translation.style import StyleTransfer, TransformNet, waves

SMALL: dict[str, Any] = {"width": 4, "blocks": 1, "vgg_width": 4, "style_size": 64}


def head(**args: Any) -> StyleTransfer:
    torch.manual_seed(0)
    return StyleTransfer(FeatureSpec(), LabelSet(()), **{**SMALL, **args})


def batch(side: int = 64, count: int = 2) -> Batch:
    torch.manual_seed(1)
    pixels = torch.nn.functional.interpolate(torch.rand(count, 3, 7, 7), size=(side, side), mode="bicubic")
    pictures = (pixels.clamp(0, 1) * 255).to(torch.uint8)
    info = tuple(ImageInfo(id=i, path="", original_size=(side, side), size=(side, side)) for i in range(count))
    return Batch(pictures.float() / 127.5 - 1.0, info, tuple(PictureTarget(p) for p in pictures))


def test_the_network_has_the_parameters_of_the_release() -> None:
    assert sum(p.numel() for p in TransformNet().parameters()) == 1_679_235


@pytest.mark.parametrize("size", [(64, 64), (61, 83), (20, 30)])
def test_pictures_have_the_size_of_their_images(size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert TransformNet(width=2)(torch.rand(1, 3, *size)).shape == (1, 3, *size)


def test_the_margin_is_just_what_the_blocks_cut_off() -> None:
    net = TransformNet(width=2)
    assert net.margin == 40
    with torch.no_grad():
        assert net.layers(torch.zeros(1, 3, 64 + 80, 48 + 80)).shape[-2:] == (64, 48)


@torch.no_grad()
def test_the_style_itself_costs_no_style_and_the_image_itself_no_content() -> None:
    one, data = head(), batch()
    image = PictureOutput(torch.stack([target.signed() for target in data.targets]))
    style = PictureOutput(waves(64).expand(2, 3, 64, 64))
    of_image, of_style = one.losses(image, data), one.losses(style, data)
    assert isinstance(of_image["content"], Tensor)
    assert float(of_image["content"]) == 0.0
    assert isinstance(of_style["style"], Tensor)
    assert float(of_style["style"]) < 1e-8 * float(of_image["style"])  # type: ignore[arg-type]
    assert float(of_style["content"]) > 1e-3  # type: ignore[arg-type]


def test_the_picture_of_the_style_is_read_and_resized(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "style.png"), pixels[..., ::-1])
    one = head(style=str(tmp_path / "style.png"), style_size=48)
    signed = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    with torch.no_grad():
        torch.testing.assert_close(one.gram_relu2_2, gram(one.vgg(signed)["relu2_2"])[0])
    with pytest.raises(DataError, match=r"nowhere.png: no such image file"):
        head(style="nowhere.png")


def test_with_random_weights_of_vgg_the_style_is_learnt() -> None:
    one, data = head(content=0.0, style_weight=1.0, variation=0.0), batch()
    optimizer = torch.optim.Adam(one.phases()["main"], lr=0.003)
    values = []
    for _ in range(80):
        losses = one.losses(one({}, data, {}), data)
        loss = losses["style"]
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]
    assert all(p.grad is None for p in one.vgg.parameters())
