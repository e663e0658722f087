"""Generators and discriminators of image translation, against the published networks and against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.formula_weights import formula_weights
from visionkit.model.importing import rename
from visionkit.types import FeatureSpec, Level
from visionkit_translation.discriminator import PatchGAN, gradient_penalty, judge_costs, made_cost
from visionkit_translation.generators import FeatureDecoder, ResNetGenerator, StandingDropout, UNet
from visionkit_translation.published_weights import patchgan_names, resnet_names, unet_names, without_statistics

DATA = Path(__file__).parents[1] / "data" / "translation"


@pytest.fixture(scope="module")
def facts() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "io.npz"))


def image(blocks: np.ndarray) -> Tensor:
    """(1, 3, H, W) in -1 ... 1 from every eighth pixel."""
    pixels = torch.from_numpy(blocks.repeat(8, 0).repeat(8, 1)).permute(2, 0, 1)
    return pixels[None].float() / 127.5 - 1.0


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- the same numbers as the published networks


@pytest.fixture(scope="module")
def unet_state() -> dict[str, Tensor]:
    return formula_weights(DATA / "pix2pix_unet256_keys.json")


def test_the_u_net_is_the_published_one(unet_state: dict[str, Tensor], facts: dict[str, np.ndarray]) -> None:
    net = UNet(norm="batch").eval()
    net.load_state_dict(rename(unet_state, unet_names(8)))
    for layer in net.modules():
        if isinstance(layer, StandingDropout):
            layer.dropout.p = 0.0
    with torch.no_grad():
        made = net(image(facts["unet_image"]))[0, :, ::4, ::4]
    np.testing.assert_allclose(made, facts["unet_out"], atol=1e-3)


def test_statistics_of_each_image_are_batch_norm_in_a_batch_of_one(
    unet_state: dict[str, Tensor], facts: dict[str, np.ndarray]
) -> None:
    net = UNet(norm="image", dropout=0.0)
    net.load_state_dict(rename(without_statistics(unet_state), unet_names(8)))
    expected = facts["unet_out_batchstats"]
    picture = image(facts["unet_image"])
    with torch.no_grad():
        for mode in (True, False):
            np.testing.assert_allclose(net.train(mode)(picture)[0, :, ::4, ::4], expected, atol=1e-3)
        beside = net(torch.cat((picture, picture.flip(3))))[0, :, ::4, ::4]
    np.testing.assert_allclose(beside, expected, atol=1e-3)


def test_the_resnet_is_the_published_one(facts: dict[str, np.ndarray]) -> None:
    net = ResNetGenerator().eval()
    net.load_state_dict(rename(formula_weights(DATA / "cyclegan_resnet9_keys.json"), resnet_names(9)))
    seen = {}
    for i in (9, 18):
        net.layers[i].register_forward_hook(lambda _, __, out, i=i: seen.update({i: out[0, ::16, ::2, ::2]}))
    with torch.no_grad():
        made = net(image(facts["resnet_image"]))[0, :, ::4, ::4]
    np.testing.assert_allclose(made, facts["resnet_out"], atol=1e-3)
    for i in (9, 18):
        np.testing.assert_allclose(seen[i], facts[f"resnet_after_{i}"], atol=1e-2)


@pytest.mark.parametrize(("name", "norm"), [("patchgan_bn", "batch"), ("patchgan_in", "instance")])
def test_the_discriminator_is_the_published_one(name: str, norm: str, facts: dict[str, np.ndarray]) -> None:
    seen = [image(facts[key]) for key in (f"{name}_image", f"{name}_image_b") if key in facts]
    net = PatchGAN(3 * len(seen), norm=norm).eval()  # type: ignore[arg-type]
    net.load_state_dict(rename(formula_weights(DATA / f"{name}_keys.json"), patchgan_names()))
    with torch.no_grad():
        np.testing.assert_allclose(net(torch.cat(seen, 1))[0], facts[f"{name}_out"], atol=2e-3)


# -- counts, sizes, what is seen


def test_parameters_are_those_of_the_papers() -> None:
    assert count(UNet()) == count(UNet(norm="batch")) == 54_413_955
    assert count(UNet(downs=7)) == 41_828_995
    assert count(ResNetGenerator()) == 11_378_179
    assert count(ResNetGenerator(blocks=6)) == 7_837_699
    assert count(PatchGAN(6)) == count(PatchGAN(6, norm="batch")) == 2_768_705
    assert count(PatchGAN(norm="instance")) == 2_764_737


def test_a_picture_of_256_pixels_is_judged_in_30_by_30_patches() -> None:
    assert PatchGAN(6, width=2)(torch.zeros(1, 6, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(("layers", "pixels"), [(1, 16), (2, 34), (3, 70), (4, 142), (5, 286), (6, 574)])
def test_a_judgement_sees_its_patch_and_nothing_else(layers: int, pixels: int) -> None:
    with torch.no_grad():
        net = PatchGAN(1, layers=layers, width=1)
        convolutions = [layer for layer in net if isinstance(layer, torch.nn.Conv2d)]
        for conv in convolutions:
            conv.weight.fill_(1.0)
    line = torch.zeros(1, 1, 640, 640, requires_grad=True)
    x = line
    for conv in convolutions:  # norms look at the whole picture, and are no part of what is counted
        x = conv(x).mean(1, keepdim=True).expand(-1, min(conv.out_channels, 1), -1, -1)
        x = x.expand(-1, conv.out_channels, -1, -1)
    x[0, 0, x.shape[2] // 2, x.shape[3] // 2].backward()
    assert line.grad is not None
    seen = line.grad[0, 0].abs().sum(0).nonzero()[:, 0]
    assert int(seen.max() - seen.min()) + 1 == pixels


@pytest.mark.parametrize("size", [(64, 64), (61, 83), (20, 33)])
def test_generators_give_pictures_of_the_size_of_their_images(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size) * 2 - 1
    for net in (UNet(downs=5, width=4), ResNetGenerator(blocks=1, width=4)):
        made = net(images)
        assert made.shape == images.shape
        assert float(made.detach().abs().max()) <= 1.0


@pytest.mark.parametrize("levels", [("c2", "c3", "c4"), ("c4",), ("c1", "c3")])
def test_the_decoder_on_features_gives_pictures_of_any_size(levels: tuple[str, ...]) -> None:
    spec = FeatureSpec({f"c{i}": Level(4 * i, 2**i) for i in range(1, 6)})
    features = {name: torch.rand(2, spec[name].channels, -(-61 // spec[name].stride), -(-83 // spec[name].stride),
                                 requires_grad=True) for name in levels}  # fmt: skip
    made = FeatureDecoder(spec, levels, channels=8)(features, (61, 83))
    assert made.shape == (2, 3, 61, 83)
    made.square().mean().backward()
    assert all(bool(value.grad is not None and value.grad.any()) for value in features.values())


@torch.no_grad()
def test_weights_begin_as_the_paper_says() -> None:
    torch.manual_seed(0)
    net = UNet(downs=6, width=16)
    kernel, norm = net.down[3][1], net.down[3][2]
    assert abs(float(kernel.weight.std()) - 0.02) < 5e-4
    assert abs(float(kernel.weight.mean())) < 5e-4
    assert abs(float(norm.weight.mean()) - 1.0) < 0.01
    assert abs(float(norm.weight.std()) - 0.02) < 0.005
    assert not bool(norm.bias.any())
    assert not bool(net.up[-1][1].bias.any())


@pytest.mark.parametrize("make", [lambda: ResNetGenerator(blocks=2, width=16), lambda: PatchGAN(6, width=16)])
def test_every_network_begins_like_that(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    convs = [m for m in make().modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    every = torch.cat([conv.weight.detach().flatten() for conv in convs])
    assert abs(float(every.std()) - 0.02) < 3e-4
    assert abs(float(every.mean())) < 3e-4
    assert all(abs(float(conv.weight.detach().std()) - 0.02) < 0.003 for conv in convs)
    assert not any(bool(conv.bias.any()) for conv in convs if conv.bias is not None)


# -- noise


def test_dropout_stands_in_the_three_innermost_steps_up() -> None:
    net = UNet(width=2)
    found = [any(isinstance(layer, StandingDropout) for layer in step) for step in net.up]
    assert found == [True] * 3 + [False] * 5


def test_noise_goes_on_after_training_and_follows_the_seed() -> None:
    images = torch.rand(1, 3, 64, 64) * 2 - 1

    def made(seed: int) -> Tensor:
        torch.manual_seed(0)
        net = UNet(downs=5, width=8, seed=seed)
        torch.manual_seed(seed + 100)  # what is drawn from elsewhere plays no part
        with torch.no_grad():
            return net.eval()(images)

    assert torch.equal(made(1), made(1))
    assert float((made(1) - made(2)).abs().max()) > 1e-3
    torch.manual_seed(0)
    net = UNet(downs=5, width=8).train()
    assert not torch.equal(net(images), net(images))


def test_dropout_keeps_the_mean() -> None:
    for mode in (True, False):
        out = StandingDropout(0.5, 0).train(mode)(torch.ones(4, 64, 16, 16))
        assert abs(float(out.mean()) - 1.0) < 0.05
        assert set(out.unique().tolist()) == {0.0, 2.0}


# -- what judgements cost


def test_costs_are_those_of_the_papers() -> None:
    real, made = torch.tensor([2.0, -0.5]), torch.tensor([0.5, -3.0])
    cross = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(2), torch.zeros(2)
    expected = {
        "vanilla": (cross(made, ones), cross(real, ones), cross(made, zeros)),
        "least_squares": (((made - 1) ** 2).mean(), ((real - 1) ** 2).mean(), (made**2).mean()),
        "hinge": (-made.mean(), torch.tensor((0 + 1.5) / 2), torch.tensor((1.5 + 0) / 2)),
        "wasserstein": (-made.mean(), -real.mean(), made.mean()),
    }
    for objective, (generator, of_real, of_made) in expected.items():
        costs = judge_costs(objective, real, made)  # type: ignore[arg-type]
        torch.testing.assert_close(made_cost(objective, made), generator)  # type: ignore[arg-type]
        torch.testing.assert_close(costs["real"], of_real)
        torch.testing.assert_close(costs["fake"], of_made)


def test_the_penalty_is_the_distance_of_the_slope_from_one() -> None:
    weight = torch.randn(3, 8, 8, requires_grad=True)
    real, made = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    found = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), real, made)
    torch.testing.assert_close(found, (weight.norm() - 1.0) ** 2)
    found.backward()
    assert weight.grad is not None
    assert bool(weight.grad.any())
