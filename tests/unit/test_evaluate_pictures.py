"""Metrics of pictures, against torchmetrics and against what can be counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from visionkit.data.shapes import ShapesSource
from visionkit.errors import DataError, UserError
from visionkit.evaluate import PicturesEvaluator
from visionkit.evaluate.image_quality import frechet_distance, kernel_distance, ms_ssim, psnr, ssim
from visionkit.types import ImageInfo, LabelSet, PicturePrediction, PictureTarget

NOTHING = LabelSet(())


def pair(height: int, width: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth picture (3, height, width) in 0 ... 1, and the same with noise."""
    torch.manual_seed(seed)
    picture = nn.functional.interpolate(torch.rand(1, 3, 9, 7), size=(height, width), mode="bicubic")[0].clamp(0, 1)
    return picture, (picture + noise * torch.randn_like(picture)).clamp(0, 1)


# -- single pictures


def test_an_error_of_one_step_everywhere_is_48_decibels() -> None:
    grey = torch.full((3, 8, 8), 100 / 255)
    assert abs(psnr(grey, grey + 1 / 255) - 48.1308) < 1e-3
    assert psnr(grey, grey) == math.inf


def theirs(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and contrast of each channel by torchmetrics, of which the mirrored border is cut off."""
    planes = one[:, None], other[:, None]
    _, whole = structural_similarity_index_measure(*planes, data_range=1.0, return_full_image=True, reduction="none")
    _, contrast = structural_similarity_index_measure(
        *planes, data_range=1.0, return_contrast_sensitivity=True, reduction="none"
    )
    return whole[..., 5:-5, 5:-5].mean((1, 2, 3)), contrast


@pytest.mark.parametrize(("height", "width"), [(11, 11), (37, 64)])
@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_structural_similarity_is_that_of_torchmetrics(height: int, width: int, noise: float) -> None:
    one, other = (x.double() for x in pair(height, width, noise))
    assert abs(ssim(one, other) - float(theirs(one, other)[0].mean())) < 1e-9
    assert abs(ssim(one, one) - 1.0) < 1e-12


def test_over_several_scales_contrast_counts_at_each_and_luminance_at_the_last() -> None:
    one, other = (x.double() for x in pair(176, 176, 0.2))
    one, other = one[:2], other[:2]
    expected, a, b = torch.ones(2, dtype=torch.float64), one, other
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, None):
        similarity, contrast = theirs(a, b)
        expected = expected * (similarity**0.1333 if weight is None else contrast**weight)
        a, b = (nn.functional.avg_pool2d(x, 2) for x in (a, b))
    assert abs(ms_ssim(one, other) - float(expected.mean())) < 1e-9
    assert abs(ms_ssim(one, one) - 1.0) < 1e-12


def test_opposite_pictures_are_not_similar() -> None:
    one, _ = pair(180, 180, 0.0)
    assert ssim(one, 1 - one) < 0.5
    assert 0.0 <= ms_ssim(one, 1 - one) < 0.5


# -- sets of pictures


class Colors(nn.Module):
    """The means of four corners of each channel: features of their own, without weights."""

    num_features = 12

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pictures.float() / 255.0, 2).flatten(1)


def sets(n: int) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(0)
    one, other = (generator.integers(0, high, (n, 3, 8, 8), dtype=np.uint8) for high in (256, 200))
    return torch.from_numpy(one), torch.from_numpy(other)


def test_distances_of_sets_are_those_of_torchmetrics() -> None:
    one, other = sets(40)
    judge = FrechetInceptionDistance(feature=Colors())
    judge.set_dtype(torch.float64)
    judge.update(one, real=True)
    judge.update(other, real=False)
    a, b = Colors()(one), Colors()(other)
    assert abs(frechet_distance(a.numpy(), b.numpy()) - float(judge.compute())) < 1e-6
    kernel = poly_mmd(a, b, 3, None, 1.0)
    assert abs(kernel_distance(a.numpy(), b.numpy()) - float(kernel)) < 1e-5
    assert frechet_distance(a.numpy(), a.numpy()) < 1e-9


# -- the evaluator


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ShapesSource:
    return ShapesSource(images=1, size=32, root=str(tmp_path_factory.mktemp("shapes") / "scenes"))


def judged(count: int, side: int) -> tuple[list[PicturePrediction], list[PictureTarget], list[ImageInfo]]:
    made, wanted, info = [], [], []
    for i in range(count):
        one, other = pair(side, side + 3, 0.1, seed=i)
        wanted.append(PictureTarget((one * 255).round().to(torch.uint8)))
        made.append(PicturePrediction(other))
        info.append(ImageInfo(id=f"{i}", path="", original_size=(side, side + 3), size=(side, side + 3)))
    return made, wanted, info


def test_metrics_are_means_over_the_pictures_and_each_counts_once(source: ShapesSource) -> None:
    made, wanted, info = judged(3, 20)
    whole, *parts = (PicturesEvaluator(source, NOTHING) for _ in range(3))
    whole.add(made, wanted, info)
    found = whole.result()
    truth = [w.picture.float() / 255 for w in wanted]
    assert abs(found["L1"] - sum(float((m.picture - t).abs().mean()) for m, t in zip(made, truth)) / 3) < 1e-6
    assert abs(found["PSNR"] - sum(psnr(m.picture, t) for m, t in zip(made, truth)) / 3) < 1e-4
    assert abs(found["SSIM"] - sum(ssim(m.picture, t) for m, t in zip(made, truth)) / 3) < 1e-6
    assert math.isnan(found["MS-SSIM"])  # too small to be measured
    parts[0].add(made[:2], wanted[:2], info[:2])
    parts[1].add(made[1:], wanted[1:], info[1:])
    parts[0].merge([parts[1].state()])
    assert parts[0].result() == found


def test_pictures_that_are_not_labelled_do_not_count_and_sizes_must_agree(source: ShapesSource) -> None:
    made, wanted, info = judged(2, 20)
    evaluator = PicturesEvaluator(source, NOTHING)
    evaluator.add(made, [None, None], info)
    assert list(evaluator.result()) == ["L1", "PSNR", "SSIM", "MS-SSIM"]
    assert all(map(math.isnan, evaluator.result().values()))
    with pytest.raises(DataError, match=r"image 0: a picture of \(3, 20, 23\) for one of \(3, 19, 23\)"):
        evaluator.add(made[:1], [PictureTarget(wanted[0].picture[:, 1:])], info[:1])


class Apart(nn.Module):
    """A distance that is easily counted."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().flatten(1).mean(1)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_networks_of_the_user_give_further_metrics(source: ShapesSource, tmp_path: Path) -> None:
    files = {"inception": tmp_path / "colors.pt", "lpips": tmp_path / "apart.pt"}
    torch.jit.trace(Colors(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).save(str(files["inception"]))  # type: ignore[no-untyped-call]
    torch.jit.trace(Apart(), (torch.zeros(1, 3, 8, 8),) * 2).save(str(files["lpips"]))  # type: ignore[no-untyped-call]
    made, wanted, info = judged(6, 16)
    evaluator = PicturesEvaluator(source, NOTHING, **{key: str(path) for key, path in files.items()})
    evaluator.add(made, wanted, info)
    found = evaluator.result()
    assert abs(found["LPIPS"] - 2 * found["L1"]) < 1e-6
    colors = [Colors()(torch.stack([p.bytes() for p in made])), Colors()(torch.stack([t.picture for t in wanted]))]
    assert abs(found["FID"] - frechet_distance(*(c.numpy() for c in colors))) < 1e-9
    assert set(found) == {"L1", "PSNR", "SSIM", "MS-SSIM", "LPIPS", "FID", "KID"}


def test_missing_weights_are_told(source: ShapesSource, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"inception: nowhere.pt: no such file"):
        PicturesEvaluator(source, NOTHING, inception="nowhere.pt")
    with pytest.raises(UserError, match=r"lpips: .*broken.pt: cannot be read as TorchScript"):
        PicturesEvaluator(source, NOTHING, lpips=str(tmp_path / "broken.pt"))
