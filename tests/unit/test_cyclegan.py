"""CycleGAN: which picture goes through which network, what the pool hands back, and published generators as runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.formula_weights import formula_weights
from visionkit.data.base import Sample
from visionkit.errors import UserError
from visionkit.model.importing import import_model
from visionkit.plugins import PluginManager
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, Mean, MixedBatch, PictureTarget
from visionkit_translation.cyclegan import CycleGAN, CycleOutput
from visionkit_translation.pool import PicturePool

DATA = Path(__file__).parents[1] / "data" / "translation"
SMALL: dict[str, Any] = {"blocks": 1, "width": 4, "judge_layers": 2, "judge_width": 4, "pool": 2, "pool_side": 64}


def head(**args: Any) -> CycleGAN:
    torch.manual_seed(0)
    return CycleGAN(FeatureSpec(), LabelSet(()), **{**SMALL, **args})


def batch(count: int = 1) -> Batch:
    torch.manual_seed(1)
    size = (32, 40)
    info = tuple(ImageInfo(id=i, path="", original_size=size, size=size) for i in range(count))
    pictures = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return Batch(torch.rand(count, 3, *size) * 2 - 1, info, tuple(PictureTarget(picture) for picture in pictures))


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return PluginManager()


def value(loss: Any) -> float:
    return float((loss.value() if isinstance(loss, Mean) else loss).detach())


def test_four_networks_have_the_parameters_of_the_paper() -> None:
    whole = CycleGAN(FeatureSpec(), LabelSet(()))
    assert sum(p.numel() for p in whole.parameters()) == 28_285_832
    main, other = (sum(p.numel() for p in parameters) for parameters in whole.phases().values())
    assert (main, other) == (2 * 11_378_179, 2 * 2_764_737)


class Shift(nn.Module):
    """A generator that adds a number, and remembers what it was shown."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.shown = by, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return x + self.by


def test_every_picture_goes_the_right_way() -> None:
    one, data = head(), batch()
    one.forth, one.back = Shift(0.25), Shift(-0.125)  # type: ignore[assignment]
    first, second = data.images, data.targets[0].signed()[None]
    output = one({}, data, {})
    losses = one.losses(output, data)
    # Forth: the image; what was made of the target; the target, which is in that domain already.
    for shown, expected in zip(one.forth.shown, (first, second - 0.125, second), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(shown, expected)
    # Back: the target; what was made of the image; the image.
    for shown, expected in zip(one.back.shown, (second, first + 0.25, first), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(shown, expected)
    assert value(losses["cycle"]) == pytest.approx(10 * (0.125 + 0.125), rel=1e-5)
    assert value(losses["identity"]) == pytest.approx(5 * (0.125 + 0.25), rel=1e-5)
    torch.testing.assert_close(output.back, second - 0.125)


def test_judges_see_their_own_domain_and_pay_squares() -> None:
    one, data = head(pool=0), batch()
    output = one({}, data, {})
    losses = one.losses(output, data)
    first, second = data.images, data.targets[0].signed()[None]
    assert output.back is not None
    with torch.no_grad():
        judged = {
            "first": (one.judge_first(first), one.judge_first(output.back)),
            "second": (one.judge_second(second), one.judge_second(output.picture)),
        }
    assert value(losses["gan_back"]) == pytest.approx(float((judged["first"][1] - 1).square().mean()), rel=1e-4)
    assert value(losses["gan_forth"]) == pytest.approx(float((judged["second"][1] - 1).square().mean()), rel=1e-4)
    costs = one.phase_losses("discriminator", output, data)
    for name, (real, made) in judged.items():
        assert value(costs[f"{name}_real"]) == pytest.approx(float((real - 1).square().mean()) / 2, rel=1e-4)
        assert value(costs[f"{name}_fake"]) == pytest.approx(float(made.square().mean()) / 2, rel=1e-4)


def test_the_judges_are_shown_what_was_made_before_the_generators_moved() -> None:
    one, data = head(pool=0), batch()
    output = one({}, data, {})
    one.losses(output, data)
    before = value(one.phase_losses("discriminator", output, data)["first_fake"])
    with torch.no_grad():
        for p in one.back.parameters():
            p.add_(0.1)
    assert value(one.phase_losses("discriminator", output, data)["first_fake"]) == before
    cut = replace(output, back=None)
    assert value(one.phase_losses("discriminator", cut, data)["first_fake"]) != before


def test_identity_can_be_left_out() -> None:
    one, data = head(identity=0.0), batch()
    assert tuple(one.losses(one({}, data, {}), data)) == one.loss_names == ("gan_forth", "gan_back", "cycle")


def test_an_encoder_can_be_shared() -> None:
    apart, shared = head(), head(shared_encoder=True)
    counts = [sum(p.numel() for p in one.parameters()) for one in (apart, shared)]
    encoder = sum(p.numel() for p in apart.forth.layers[:10].parameters())
    assert encoder == (3 * 4 * 49 + 4) + (4 * 8 * 9 + 8) + (8 * 16 * 9 + 16)
    assert counts[0] - counts[1] == encoder
    data = batch()
    losses = shared.losses(shared({}, data, {}), data)
    losses["gan_back"].backward()  # type: ignore[operator]
    assert all(p.grad is not None for p in shared.back.parameters())
    assert shared.forth.layers[1].weight.grad is not None
    assert shared.forth.layers[-2].weight.grad is None
    again = head(shared_encoder=True)
    again.load_state_dict(shared.state_dict())
    torch.testing.assert_close(again({}, data, {}).picture, shared({}, data, {}).picture)


@pytest.mark.parametrize("objective", ["vanilla", "hinge", "wasserstein"])
def test_every_objective_trains_the_judges(objective: str) -> None:
    one, data = head(objective=objective, pool=0), batch(2)
    output = one({}, data, {})
    one.losses(output, data)
    detached = CycleOutput(output.picture.detach(), output.back.detach())  # type: ignore[union-attr]
    costs = one.phase_losses("discriminator", detached, data)
    assert tuple(costs) == tuple(one.phase_loss_names["discriminator"])
    assert ("first_penalty" in costs) == (objective == "wasserstein")
    torch.stack(list(costs.values())).sum().backward()
    for judge in (one.judge_first, one.judge_second):
        assert all(p.grad is not None for p in judge.parameters() if p.requires_grad)


def test_images_that_were_normalised_otherwise_come_in_the_same_range() -> None:
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    one, data = head(), batch()
    images = ((data.images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    turned = replace(data, images=images, mean=mean, std=std)
    torch.testing.assert_close(turned.signed(), data.images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one({}, turned, {}).picture, one({}, data, {}).picture, rtol=1e-3, atol=1e-4)
    output = one({}, turned, {})
    assert value(one.losses(output, turned)["cycle"]) == pytest.approx(
        value(one.losses(one({}, data, {}), data)["cycle"]), rel=1e-3
    )


# -- the pool


def picture(byte: int, side: int = 8) -> Tensor:
    return torch.full((1, 3, side, side), byte / 127.5 - 1.0)


def test_the_pool_is_filled_first_and_then_gives_back_old_pictures_half_of_the_time() -> None:
    torch.manual_seed(0)
    pool = PicturePool(50, 8)
    for i in range(50):
        assert torch.equal(pool.exchange(picture(i))[0], picture(i)[0])
    old = {i: picture(i)[0] for i in range(50)}
    fresh = 0
    for i in range(50, 250):
        (found,) = pool.exchange(picture(i))
        if torch.equal(found, picture(i)[0]):
            fresh += 1
            continue
        gone = [key for key, kept in old.items() if torch.allclose(kept, found, atol=1e-6)]
        assert len(gone) == 1
        del old[gone[0]]
        old[i] = picture(i)[0]
    assert 70 < fresh < 130
    kept = sorted(int(value) for value in pool.pictures[:, 0, 0, 0])
    assert kept == sorted(old)


def test_the_pool_is_part_of_the_state_and_takes_any_size() -> None:
    torch.manual_seed(0)
    pool, other = PicturePool(2, 8), PicturePool(2, 8)
    small, large = torch.rand(1, 3, 5, 7) * 2 - 1, torch.rand(1, 3, 20, 6) * 2 - 1
    pool.exchange(small)
    pool.exchange(large)
    other.load_state_dict(pool.state_dict())
    torch.manual_seed(3)
    ones = [pool.exchange(picture(9))[0] for _ in range(20)]
    torch.manual_seed(3)
    others = [other.exchange(picture(9))[0] for _ in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(ones, others))
    assert {tuple(p.shape[1:]) for p in ones} == {(5, 7), (8, 6), (8, 8)}
    assert PicturePool(0, 8).exchange(small)[0].equal(small[0])


def test_pictures_of_several_sizes_are_judged_alike() -> None:
    one, data = head(pool_side=24), batch(2)
    output = one({}, data, {})
    for _ in range(4):
        costs = one.phase_losses("discriminator", CycleOutput(output.picture.detach()), data)
    assert all(bool(torch.isfinite(cost)) for cost in costs.values())


# -- published generators


def run_of(model: Any, pixels: np.ndarray) -> Tensor:
    size = (pixels.shape[0], pixels.shape[1])
    sample = Sample(torch.from_numpy(pixels).permute(2, 0, 1), ImageInfo("x", "", size, size))
    mixed = MixedBatch(sample.image[None], (sample.info,), {})
    with torch.no_grad():
        ready = mixed.normalised(model.mean, model.std, channels_last=False)
        return model.predict(ready)["picture"][0].picture


@pytest.mark.parametrize(
    ("importer", "keys", "image", "expected"),
    [
        ("pix2pix/unet256", "pix2pix_unet256_keys.json", "unet_image", "unet_out_batchstats"),
        ("cyclegan/resnet9", "cyclegan_resnet9_keys.json", "resnet_image", "resnet_out"),
    ],
)
def test_a_published_generator_becomes_a_run(
    importer: str, keys: str, image: str, expected: str, tmp_path: Path, plugins: PluginManager
) -> None:
    facts = np.load(DATA / "io.npz")
    torch.save(formula_weights(DATA / keys), tmp_path / "latest_net_G.pth")
    model = import_model(plugins.load("importer", importer)(), tmp_path / "latest_net_G.pth", plugins).model
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the facts are without noise
    made = run_of(model, facts[image].repeat(8, 0).repeat(8, 1))
    np.testing.assert_allclose(made[:, ::4, ::4] * 2 - 1, facts[expected], atol=2e-3)


def test_another_network_is_told(tmp_path: Path, plugins: PluginManager) -> None:
    torch.save({"model.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth: no tensor is called .* its tensors are called model\.0\.weight"):
        import_model(plugins.load("importer", "cyclegan/resnet9")(), tmp_path / "other.pth", plugins)
