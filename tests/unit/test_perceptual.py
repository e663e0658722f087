"""Perceptual losses: which network is asked, on which pixels, and what they do and do not see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import vgg16

from visionkit.errors import UserError
from visionkit_translation.perceptual import VGG16, content_cost, gram, style_cost, total_variation

# Indices in torchvision's network (Johnson's, counted from 1, are one more: 4, 9, 16, 23).
PLACES = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22}


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device("cpu"):
        net = vgg16(weights=None).features[:23]
    return net.eval()


@pytest.fixture(scope="module")
def weights(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pt"
    torch.save({f"features.{name}": value for name, value in theirs.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("convention", ["torchvision", "caffe"])
def test_layers_are_those_of_torchvision_on_pixels_of_its_scale(
    convention: str, theirs: torch.nn.Module, weights: str
) -> None:
    net = VGG16(PLACES, weights=weights, convention=convention)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (1, 3, 40, 48)).float()
    if convention == "torchvision":
        x = (pixels / 255 - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / torch.tensor((0.229, 0.224, 0.225))[
            :, None, None
        ]
    else:
        x = pixels.flip(1) - torch.tensor((103.939, 116.779, 123.68))[:, None, None]
    with torch.no_grad():
        found = net(pixels / 127.5 - 1.0)
        for i, layer in enumerate(theirs):
            x = layer(x)
            for name, place in PLACES.items():
                if i == place:
                    torch.testing.assert_close(found[name], x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    assert set(found) == set(PLACES)


def test_nothing_of_it_is_trained_but_gradients_pass() -> None:
    net = VGG16(["relu2_2"], width=4)
    picture = torch.zeros(1, 3, 16, 16, requires_grad=True)
    net(picture)["relu2_2"].mean().backward()
    assert picture.grad is not None
    assert bool(picture.grad.any())
    assert not any(p.requires_grad for p in net.parameters())
    assert len(net.features) == 9  # nothing is built behind what is wanted


def test_weights_of_something_else_are_told(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other.pt: is no VGG-16 .* features.0.bias is \(64,\) there, and .* no such"):
        VGG16(["relu1_1"], weights=str(tmp_path / "other.pt"))
    with pytest.raises(UserError, match=r"nowhere.pt: no such weights file"):
        VGG16(["relu1_1"], weights="nowhere.pt")
    with pytest.raises(UserError, match=r"no layer 'relu1_3' \(layers: relu1_1 ... relu5_3\)"):
        VGG16(["relu1_3"])


def test_a_gram_matrix_knows_what_goes_with_what_but_not_where() -> None:
    features = torch.randn(2, 5, 6, 8)
    shuffled = features.flatten(2)[..., torch.randperm(48)].view_as(features)
    repeated = features.repeat(1, 1, 3, 2)
    torch.testing.assert_close(gram(shuffled), gram(features))
    torch.testing.assert_close(gram(repeated), gram(features))
    assert float(content_cost(shuffled, features)) > 0.1
    expected = torch.einsum("bchw,bdhw->bcd", features, features) / (5 * 6 * 8)
    torch.testing.assert_close(gram(features), expected)
    assert float(style_cost(shuffled, gram(features[:1])[0])) > 0.0
    assert float(style_cost(shuffled[:1], gram(features[:1])[0])) < 1e-10


def test_total_variation_counts_steps_between_neighbours() -> None:
    picture = torch.full((2, 3, 4, 5), -1.0)
    assert float(total_variation(picture)) == 0.0
    picture[:, :, :, 3:] = 1.0  # one step of 255 in each of 4 rows and 3 channels
    assert float(total_variation(picture)) == 12 * 255**2
