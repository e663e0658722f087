"""The semantic branch, its loss, and label maps at the original size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.errors import UserError
from visionkit.layers.semantic import semantic_cross_entropy, semantic_predictions
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, Level, SemanticTarget
from visionkit_semantic.semantic_fpn import SemanticFPN

SPEC = FeatureSpec({f"p{i}": Level(16, 2**i) for i in range(2, 6)})
LABELS = LabelSet(("sky", "road", "tree"))


def info(size, original=None, affine=None) -> ImageInfo:
    original = original or size
    scaled = (size[1] / original[1], 0.0, 0.0, 0.0, size[0] / original[0], 0.0)
    return ImageInfo(0, "", original, size, affine or scaled)


def features(height: int, width: int, images: int = 2) -> dict[str, Tensor]:
    return {n: torch.randn(images, 16, -(-height // v.stride), -(-width // v.stride)) for n, v in SPEC.items()}


def batch(height: int, width: int, infos, targets=()) -> Batch:
    return Batch(torch.zeros(len(infos), 3, height, width), tuple(infos), tuple(SemanticTarget(t) for t in targets))


def test_forward_as_the_paper_has_it() -> None:
    head = SemanticFPN(SPEC, LABELS, channels=32)
    x = features(64, 96)
    want = torch.zeros(2, 32, 16, 24)
    for name, doublings in (("p2", 0), ("p3", 1), ("p4", 2), ("p5", 3)):
        y = x[name]
        for layer in head.branches[name]:
            y = F.relu(F.group_norm(F.conv2d(y, layer.conv.weight, padding=1), 16, layer.norm.weight, layer.norm.bias))
            y = F.interpolate(y, scale_factor=2, mode="bilinear") if doublings else y
        want = want + y
    got = head(x, batch(64, 96, [info((64, 96))] * 2), {}).logits
    torch.testing.assert_close(got, F.conv2d(want, head.score.weight, head.score.bias))


def test_parameter_count() -> None:
    spec = FeatureSpec({f"p{i}": Level(256, 2**i) for i in range(2, 6)})
    with torch.device("meta"):
        head = SemanticFPN(spec, LabelSet(tuple(map(str, range(54)))))
    convs = 9 * 128 * (4 * 256 + 3 * 128) + 7 * 2 * 128  # seven 3x3 without bias, each with group norm
    assert sum(p.numel() for p in head.parameters()) == convs + 54 * 129


def test_sizes_that_no_stride_divides() -> None:
    head = SemanticFPN(SPEC, LABELS, channels=8)
    b = batch(101, 75, [info((101, 75), (50, 31)), info((90, 70), (33, 44))])
    output = head(features(101, 75), b, {})
    assert output.logits.shape == (2, 3, 26, 19)
    assert [p.labels.shape for p in head.predict(output, b)] == [(50, 31), (33, 44)]


def test_loss_is_the_mean_over_labelled_pixels_alone() -> None:
    logits = torch.randn(2, 3, 8, 8)
    maps = [torch.randint(0, 3, (32, 20), dtype=torch.uint8), torch.randint(0, 3, (24, 32), dtype=torch.uint8)]
    maps[0][:5] = 255
    b = batch(32, 32, [info((32, 20)), info((24, 32))], maps)
    up = F.interpolate(logits, scale_factor=4, mode="bilinear")
    scores = torch.cat([up[0, :, 5:, :20].flatten(1), up[1, :, :24].flatten(1)], 1).T
    truth = torch.cat([maps[0][5:].flatten(), maps[1].flatten()]).long()
    torch.testing.assert_close(semantic_cross_entropy(logits, b, stride=4).value(), F.cross_entropy(scores, truth))
    weight = torch.tensor([1.0, 0.2, 3.0])
    torch.testing.assert_close(
        semantic_cross_entropy(logits, b, stride=4, weight=weight).value(), F.cross_entropy(scores, truth, weight)
    )


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0)])
def test_nothing_labelled_is_zero_with_a_graph(weights) -> None:
    head = SemanticFPN(SPEC, LABELS, channels=8, class_weights=weights)
    b = batch(32, 32, [info((32, 32))] * 2, [torch.full((32, 32), 255, dtype=torch.uint8)] * 2)
    losses = {name: loss.value() for name, loss in head.losses(head(features(32, 32), b, {}), b).items()}
    assert list(losses) == list(head.loss_names)
    assert losses["cross_entropy"].item() == 0
    losses["cross_entropy"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_learns() -> None:
    torch.manual_seed(0)
    head = SemanticFPN(SPEC, LABELS, channels=16)
    truth = torch.zeros(32, 64, dtype=torch.uint8)
    truth[:, 32:] = 2
    b = batch(32, 64, [info((32, 64))], [truth])
    x = {n: torch.cat((f[..., : f.shape[3] // 2].abs(), -f[..., f.shape[3] // 2 :].abs()), 3)
         for n, f in features(32, 64, 1).items()}  # fmt: skip
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        head.losses(head(x, b, {}), b)["cross_entropy"].value().backward()
        optimizer.step()
    labels = head.predict(head(x, b, {}), b)[0].labels
    assert labels.dtype == torch.uint8
    assert (labels == truth).float().mean() > 0.95


@pytest.mark.parametrize(("original", "size"), [((96, 160), (48, 80)), ((37, 50), (48, 65)), ((48, 80), (48, 80))])
def test_label_map_is_the_argmax_of_resampled_logits(original, size) -> None:
    """Closed form: bilinear look-up of the logits at every original pixel's centre."""
    logits = torch.randn(1, 3, 16, 24)  # of a 64 x 96 input; the image covers only ``size`` of it
    b = batch(64, 96, [info(size, original)])
    got = semantic_predictions(logits, b, stride=4)[0].labels
    y = (torch.arange(original[0]) + 0.5) * size[0] / original[0] / 64 * 2 - 1
    x = (torch.arange(original[1]) + 0.5) * size[1] / original[1] / 96 * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    want = F.grid_sample(logits, grid, padding_mode="border", align_corners=False)[0].argmax(0)
    assert got.shape == original
    assert (got == want).float().mean() > 0.999  # but for ties to the last bit


def test_mirrored_image_is_mirrored_back() -> None:
    logits = torch.randn(1, 5, 8, 8)
    upright = semantic_predictions(logits, batch(32, 32, [info((32, 32))]), stride=4)[0].labels
    mirror = info((32, 32), affine=(-1.0, 0.0, 32.0, 0.0, 1.0, 0.0))
    mirrored = semantic_predictions(logits.flip(3), batch(32, 32, [mirror]), stride=4)[0].labels
    assert (upright == mirrored).float().mean() > 0.999


def test_bands_make_no_difference(monkeypatch) -> None:
    logits = torch.randn(1, 3, 8, 8)
    b = batch(32, 32, [info((32, 32), (77, 55))])
    whole = semantic_predictions(logits, b, stride=4)[0].labels
    monkeypatch.setattr("visionkit.layers.semantic._AT_ONCE", 1)
    assert torch.equal(semantic_predictions(logits, b, stride=4)[0].labels, whole)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="2 weights for 3 classes"):
        SemanticFPN(SPEC, LABELS, class_weights=(1.0, 2.0))
    with pytest.raises(UserError, match="'c1' has stride 2"):
        SemanticFPN(FeatureSpec({"c1": Level(8, 2)}), LABELS, levels=["c1"])
