"""pix2pix: what its two sides pay for, what moves when, and the noise that a picture is made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visionkit.data.pairs import PaintedSource
from visionkit.testing import check_head
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, Mean, PictureTarget
from visionkit_translation.pictures import PictureOutput
from visionkit_translation.pix2pix import Pix2Pix

SMALL: dict[str, Any] = {"downs": 5, "width": 4, "judge_layers": 2, "judge_width": 4}


def head(**args: Any) -> Pix2Pix:
    torch.manual_seed(0)
    return Pix2Pix(FeatureSpec(), LabelSet(()), **{**SMALL, **args})


def batch(count: int = 2, size: tuple[int, int] = (64, 64), within: tuple[int, int] | None = None) -> Batch:
    """Random images with random pictures; with ``within`` they are padded to that size."""
    generator = torch.Generator().manual_seed(0)
    within = within or size
    images = torch.zeros(count, 3, *within)
    images[..., : size[0], : size[1]] = torch.rand(count, 3, *size, generator=generator) * 2 - 1
    info = tuple(ImageInfo(id=i, path="", original_size=size, size=size) for i in range(count))
    pictures = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    return Batch(images, info, tuple(PictureTarget(picture) for picture in pictures))


def value(loss: Any) -> float:
    return float((loss.value() if isinstance(loss, Mean) else loss).detach())


@torch.no_grad()
def test_both_sides_pay_what_the_paper_says() -> None:
    one, data = head(dropout=0.0), batch()
    output = one(dict[str, Tensor](), data, {})
    truth = torch.stack([target.signed() for target in data.targets])
    judged = {kind: one.discriminator(torch.cat((data.images, p), 1))
              for kind, p in (("made", output.picture), ("real", truth))}  # fmt: skip
    cross = nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(judged["made"]), torch.zeros_like(judged["made"])

    main = one.phase_losses("main", output, data)
    assert value(main["gan"]) == pytest.approx(float(cross(judged["made"], ones)), rel=1e-5)
    assert value(main["l1"]) == pytest.approx(100 * float((output.picture - truth).abs().mean()), rel=1e-5)
    other = one.phase_losses("discriminator", output, data)
    assert value(other["real"]) == pytest.approx(float(cross(judged["real"], ones)) / 2, rel=1e-5)
    assert value(other["fake"]) == pytest.approx(float(cross(judged["made"], zeros)) / 2, rel=1e-5)


def test_the_judge_sees_the_image_too() -> None:
    one, data = head(), batch()
    output = PictureOutput(torch.stack([target.signed() for target in data.targets]))
    turned = replace(data, images=data.images.flip(0))
    assert value(one.losses(output, data)["gan"]) != value(one.losses(output, turned)["gan"])


def test_padding_is_nothing_to_be_near_to() -> None:
    one, data = head(), batch(1, (40, 48), (64, 64))
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., :40, :48] = data.targets[0].signed()
    assert value(one.losses(PictureOutput(picture), data)["l1"]) == 0.0
    picture[..., 40:, :] = 1.0
    assert value(one.losses(PictureOutput(picture), data)["l1"]) == 0.0


@pytest.mark.parametrize("objective", ["least_squares", "hinge", "wasserstein"])
def test_every_objective_trains_the_judge(objective: str) -> None:
    one, data = head(objective=objective), batch()
    output = one({}, data, {})
    costs = one.phase_losses("discriminator", PictureOutput(output.picture.detach()), data)
    assert tuple(costs) == tuple(one.phase_loss_names["discriminator"])
    assert ("penalty" in costs) == (objective == "wasserstein")
    torch.stack(list(costs.values())).sum().backward()
    assert all(p.grad is not None for p in one.discriminator.parameters() if p.requires_grad)
    assert all(p.grad is None for p in one.generator.parameters())


def test_two_seeds_are_two_pictures_and_one_seed_is_one() -> None:
    data = batch(1)

    def made(seed: int) -> Tensor:
        with torch.no_grad():
            return head(seed=seed).eval()({}, data, {}).picture

    assert torch.equal(made(1), made(1))
    assert float((made(1) - made(2)).abs().mean()) > 1e-3


def test_what_vgg_sees_can_be_asked_for() -> None:
    one, data = head(perceptual=2.0), batch(1)
    assert one.loss_names == ("gan", "l1", "perceptual")
    assert Pix2Pix.loss_names == ("gan", "l1")
    truth = PictureOutput(torch.stack([target.signed() for target in data.targets]))
    assert value(one.losses(truth, data)["perceptual"]) == 0.0
    output = one({}, data, {})
    losses = one.losses(output, data)
    losses["perceptual"].backward()
    assert any(bool(p.grad.any()) for p in one.generator.parameters() if p.grad is not None)
    assert one.vgg is not None
    assert all(p.grad is None for p in one.vgg.parameters())
    assert not {id(p) for p in one.vgg.parameters()} & {id(p) for ps in one.phases().values() for p in ps}


@pytest.mark.parametrize(
    "args",
    [
        {"levels": ["p2", "p4"], "width": 8},
        {"generator": "resnet", "blocks": 1, "objective": "least_squares", "norm": "instance"},
    ],
)
def test_other_generators_keep_the_contract_too(args: dict[str, Any], tmp_path: Path) -> None:
    source = PaintedSource(source={"name": "shapes", "size": 64, "images": 6, "root": str(tmp_path / "scenes")})
    checks = ["losses_are_named_finite_scalars", "gradients_reach_the_features", "gradients_reach_every_parameter",
              "a_toy_batch_is_learnt", "odd_sizes_work", "an_image_alone_is_its_row_of_a_batch", "a_seed_decides",
              "each_phase_trains_its_own_parameters", "mode_is_not_looked_at"]  # fmt: skip
    report = check_head(Pix2Pix, args={**SMALL, **args}, source=source, only=checks)
    report.assert_passed()
    assert len(report.passed) == len(checks)


def test_losses_that_options_add_are_declared(tmp_path: Path) -> None:
    source = PaintedSource(source={"name": "shapes", "size": 64, "images": 6, "root": str(tmp_path / "scenes")})
    checks = ["declares_what_it_is", "losses_are_named_finite_scalars", "phases_share_out_the_parameters",
              "each_phase_trains_its_own_parameters"]  # fmt: skip
    report = check_head(
        Pix2Pix, args={**SMALL, "perceptual": 1.0, "objective": "wasserstein"}, source=source, only=checks
    )
    report.assert_passed()
    assert len(report.passed) == len(checks)
