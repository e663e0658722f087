"""What keeps numbers right and the host busy on an accelerator: transfers, coordinates, random numbers."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
import torchvision
from torch import Tensor

from visionkit.layers.boxes import IGNORED, OBJECTLESS, batched_nms, match, sample_images, soft_nms
from visionkit.layers.deform import DeformConv
from visionkit.layers.heatmaps import heatmap_focal_sum
from visionkit.layers.keypoint_maps import keypoint_maps, keypoint_peaks
from visionkit.model import MultiTaskModel
from visionkit.testing.fake_cuda import FakeCuda, fake_cuda
from visionkit.train.checkpoint import rng_state, set_rng_state
from visionkit.types import ImageInfo, InstanceTarget, MixedBatch, SemanticTarget
from visionkit.types.device import constant, on_host, to_device, true_rows
from visionkit.types.processes import gather_objects, pickled
from visionkit_translation.perceptual import gram
from visionkit_translation.pool import PicturePool


@pytest.fixture
def gpu():
    if torch.cuda.is_available():
        pytest.skip("a real CUDA device cannot be emulated")
    with fake_cuda() as device:
        yield device


def waits(gpu: FakeCuda) -> int:
    return len(gpu.log.synchronizations)


def objects(count: int = 3, seed: int = 0) -> InstanceTarget:
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=draw) * 20
    boxes = torch.cat((low, low + 4 + torch.rand(count, 2, generator=draw) * 16), 1)
    masks = torch.zeros(count, 40, 48, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    return InstanceTarget(
        boxes, torch.arange(count), torch.zeros(count, dtype=torch.bool), torch.ones(count), torch.arange(count), masks
    )


# -- transfers


def test_tensors_of_all_dtypes_travel_together_and_come_back(gpu: FakeCuda) -> None:
    tensors = [
        torch.rand(3, 5), torch.arange(7), torch.tensor([True, False, True]), torch.zeros(0, 4), torch.tensor(2.5),
        torch.randint(0, 255, (2, 3, 5), dtype=torch.uint8), torch.rand(3).half(), torch.rand(4, 3).t(),
    ]  # fmt: skip
    moved = to_device(tensors, "cuda")
    assert waits(gpu) == 0
    assert all(tensor.device.type == "cuda" for tensor in moved)
    back = on_host(moved)
    assert waits(gpu) == 1
    for one, other in zip(tensors, back):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_batch_moves_without_a_wait(gpu: FakeCuda) -> None:
    shared = objects()
    info = tuple(ImageInfo(i, "", (40, 48), (40, 48)) for i in range(2))
    semantic = [SemanticTarget(torch.zeros(40, 48, dtype=torch.uint8)), None]
    targets = {"boxes": [shared, objects(0)], "masks": [shared, None], "semantic": semantic}
    batch = MixedBatch(torch.randint(0, 255, (2, 3, 40, 48), dtype=torch.uint8), info, targets)
    moved = batch.to("cuda")
    assert waits(gpu) == 0
    ready = moved.normalised(*(constant((0.5, 0.5, 0.5), moved.images, torch.float32) for _ in range(2)))
    assert ready.images.device.type == "cuda"
    assert moved.targets["masks"][1] is None
    assert moved.targets["boxes"][0].boxes.device.type == "cuda"
    assert torch.equal(moved.images.cpu(), batch.images)
    assert torch.equal(moved.targets["boxes"][0].masks.dense().cpu(), shared.masks.dense())
    assert moved.info == batch.info


def test_a_target_that_moves_itself_is_asked_to(gpu: FakeCuda) -> None:
    @dataclasses.dataclass
    class Own(SemanticTarget):
        moves: int = 0

        def to(self, device, non_blocking=False):
            return dataclasses.replace(self, labels=self.labels.to(device), moves=self.moves + 1)

    own = Own(torch.zeros(2, 2, dtype=torch.uint8))
    batch = MixedBatch(torch.zeros(1, 3, 2, 2), (ImageInfo(0, "", (2, 2), (2, 2)),), {"semantic": [own]})
    assert batch.to("cuda").targets["semantic"][0].moves == 1


def test_indices_of_many_masks_take_one_wait(gpu: FakeCuda) -> None:
    masks = [torch.rand(n) > 0.5 for n in (5, 0, 9)]
    rows = true_rows(to_device(masks, "cuda"))
    assert waits(gpu) == 1
    assert [row.tolist() for row in on_host(rows)] == [mask.nonzero()[:, 0].tolist() for mask in masks]
    assert true_rows([]) == []


def test_masks_know_their_windows_without_asking_the_device(gpu: FakeCuda) -> None:
    masks = objects().masks
    assert masks is not None
    there = MixedBatch(torch.zeros(1, 3, 40, 48), (ImageInfo(0, "", (40, 48), (40, 48)),), {"a": [objects()]})
    moved = there.to("cuda").targets["a"][0].masks
    dense, part = moved.dense(), moved.select(torch.tensor([2, 0]))
    assert waits(gpu) == 0
    assert torch.equal(dense.cpu(), masks.dense())
    assert torch.equal(part.dense().cpu(), masks.dense()[[2, 0]])
    boxes, index = torch.tensor([[2.0, 3, 20, 22], [0, 0, 30, 30]]), torch.tensor([1, 2])
    expected = masks.crop_and_resize(boxes, index, 7)
    before = waits(gpu)
    found = moved.crop_and_resize(*to_device([boxes, index], "cuda"), 7)
    assert waits(gpu) == before + 1
    torch.testing.assert_close(found.cpu(), expected)


# -- boxes


def test_nms_of_groups_is_torchvisions_with_one_wait(gpu: FakeCuda) -> None:
    torch.manual_seed(0)
    low = torch.rand(300, 2) * 80 - 10
    boxes, scores = torch.cat((low, low + 5 + torch.rand(300, 2) * 30), 1), torch.rand(300)
    groups = torch.randint(0, 5, (300,))
    expected = torchvision.ops.batched_nms(boxes, scores, groups, 0.4)
    found = batched_nms(*to_device([boxes, scores, groups], "cuda"), 0.4)
    assert waits(gpu) == 1
    assert torch.equal(found.cpu(), expected)
    assert len(batched_nms(*to_device([boxes[:0], scores[:0], groups[:0]], "cuda"), 0.4)) == 0


def test_matches_and_samples_are_the_same_on_a_device(gpu: FakeCuda) -> None:
    torch.manual_seed(0)
    target = objects(4)
    crowd = torch.tensor([False, True, False, False])
    low = torch.rand(200, 2) * 30
    boxes = torch.cat((low, low + 3 + torch.rand(200, 2) * 15), 1)
    for chosen in (crowd, torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        expected = match(boxes, target.boxes, chosen, low=0.3, high=0.5, best_of_each=True)
        found = match(*to_device([boxes, target.boxes, chosen], "cuda"), low=0.3, high=0.5, best_of_each=True)
        assert waits(gpu) == 0
        assert torch.equal(plain(found), expected)
        assert (expected == IGNORED).any() or not chosen.any()
    torch.manual_seed(1)
    wanted = sample_images([expected, expected], 16, 0.25)
    torch.manual_seed(1)
    got = sample_images(to_device([expected, expected], "cuda"), 16, 0.25)
    assert waits(gpu) == 1
    for one, other in zip(wanted, got):
        assert [part.tolist() for part in one] == [part.tolist() for part in on_host(other)]
    assert all((expected[negative] == OBJECTLESS).all() for _, negative in wanted)


def plain(value: Tensor) -> Tensor:
    return value._inner if hasattr(value, "_inner") else value


def test_soft_nms_takes_one_wait(gpu: FakeCuda) -> None:
    torch.manual_seed(0)
    low = torch.rand(50, 2) * 20
    boxes, scores, labels = torch.cat((low, low + 10), 1), torch.rand(50), torch.randint(0, 2, (50,))
    expected = soft_nms(boxes, scores, labels, method="gaussian", most=20)
    found = soft_nms(*to_device([boxes, scores, labels], "cuda"), method="gaussian", most=20)
    assert waits(gpu) == 1
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])


# -- precision


@pytest.mark.parametrize("affine", [(0.5, 0.0, 3.25, 0.0, 0.5, -7.5), (0.45, 0.2, 3.25, -0.2, 0.45, 97.5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coordinates_are_exact_in_mixed_precision(affine: tuple[float, ...], dtype: torch.dtype) -> None:
    info = ImageInfo(0, "", (1333, 1333), (700, 700), affine)  # type: ignore[arg-type]
    original = torch.tensor([[1023.3, 511.7], [1301.9, 77.1]], dtype=torch.float64)
    a, b, tx, c, d, ty = affine
    x, y = original.unbind(1)
    points = torch.stack((a * x + b * y + tx, c * x + d * y + ty), 1)
    with torch.autocast("cpu", dtype):
        found = info.points_to_original(points.float())
        boxes = info.boxes_to_original(points.float().flatten()[None][:, (0, 3, 2, 1)])
    assert found.dtype == boxes.dtype == torch.float32
    torch.testing.assert_close(found.double(), original, rtol=1e-6, atol=1e-3)
    assert info.points_to_original(points.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("decoding", ["quarter", "dark"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_peaks_are_found_in_mixed_precision(decoding: str, dtype: torch.dtype) -> None:
    keypoints = torch.tensor([[[20.3, 31.8, 2.0], [40.6, 12.2, 2.0]]])
    maps, _ = keypoint_maps(keypoints, (64, 64), 2.0, "unbiased")
    with torch.autocast("cpu", dtype):
        points, _ = keypoint_peaks(maps, decoding, 2.0)  # type: ignore[arg-type]
        rounded, _ = keypoint_peaks(maps.to(dtype), decoding, 2.0)  # type: ignore[arg-type]
    torch.testing.assert_close(points, keypoints[..., :2], rtol=0, atol=0.02 if decoding == "dark" else 0.51)
    assert rounded.dtype == torch.float32
    assert rounded.isfinite().all()
    assert keypoint_peaks(torch.zeros(1, 1, 9, 9, dtype=dtype), decoding)[0].isfinite().all()  # type: ignore[arg-type]


def test_gram_matrices_do_not_overflow() -> None:
    features = torch.full((1, 4, 64, 64), 100.0)
    with torch.autocast("cpu", torch.float16):
        found = gram(features)
    torch.testing.assert_close(found, torch.full((1, 4, 4), 100.0**2 / 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_deformable_convolutions_work_in_every_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = DeformConv(3, 4, modulated=True), torch.randn(1, 3, 6, 6)
    expected = layer(x)
    found = layer.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_focal_loss_of_heatmaps_is_the_formula() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.rand(2, 3, 5, 5, dtype=torch.float64)
    target[0, 1, 2, 3] = target[1, 0, 0, 0] = 1.0
    p = logits.sigmoid()
    positive = -((1 - p) ** 2) * p.log()
    negative = -((1 - target) ** 4) * p**2 * (1 - p).log()
    expected = torch.where(target == 1, positive, negative).sum()
    torch.testing.assert_close(heatmap_focal_sum(logits, target), expected)


# -- processes and checkpoints


def test_only_the_own_device_is_asked_for_its_random_numbers(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("all devices were asked"))
    given: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.arange(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, *_: given.append(state))
    state = rng_state()
    assert torch.equal(state["cuda"], torch.arange(16, dtype=torch.uint8))
    set_rng_state(state)
    set_rng_state({**state, "cuda": [torch.ones(16, dtype=torch.uint8)] * 2})  # as earlier versions saved them
    assert [value[1].item() for value in given] == [1, 1]


def test_without_a_device_there_are_no_random_numbers_of_one() -> None:
    assert rng_state()["cuda"] is None or torch.cuda.is_initialized()


@dataclasses.dataclass
class Nested:
    value: dict


def test_what_processes_exchange_is_on_the_cpu(gpu: FakeCuda) -> None:
    sent = Nested({"a": [(torch.arange(3).to("cuda"),)], "b": {1, 2}})
    got = pickle.loads(pickled(sent))
    assert type(got.value["a"][0][0]) is Tensor
    assert got.value["a"][0][0].tolist() == [0, 1, 2]
    assert got.value["b"] == {1, 2}
    assert gather_objects(3) == [3]


def test_pools_belong_to_their_process(gpu: FakeCuda) -> None:
    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = PicturePool(2, 8)

    model = MultiTaskModel(None, None, {})
    model.heads["gan"] = Head()
    assert set(model.local_buffers()) == {f"heads.gan.pool.{name}" for name in ("pictures", "sizes", "count")}
    pool = model.heads["gan"].pool.to("cuda")
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 6, 8).to("cuda") * 2 - 1
    before = waits(gpu)
    pool.exchange(pictures)
    assert waits(gpu) - before == 1
    assert pool.count.cpu() == 2
    assert pool.sizes.cpu().tolist() == [[6, 8], [6, 8]]
