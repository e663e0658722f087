"""The R-CNN heads, against torchvision's models with the same weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from tests.lively import spread
from tests.unit.rcnn_objects import BIG, CLASSES, HIDDEN, LABELS, PERSON, SPEC, WIDTH, instances
from visionkit.model import Backbone, MultiTaskModel
from visionkit.model.importing import rename
from visionkit.types import ImageInfo, InstanceTarget, MixedBatch
from visionkit_rcnn.rcnn import RCNN
from visionkit_rcnn.roi_keypoint import RoIKeypoint
from visionkit_rcnn.roi_mask import RoIMask
from visionkit_rcnn.torchvision_weights import BOX_NAMES
from visionkit_rcnn.torchvision_weights import KeypointRCNN as KeypointImporter
from visionkit_rcnn.torchvision_weights import MaskRCNN as MaskImporter


class Pyramid(nn.Module):
    """Any function of the image with torchvision's five levels."""

    out_channels = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(3, WIDTH, 5, padding=2) for _ in range(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [conv(F.avg_pool2d(x, 4 * 2**i)) for i, conv in enumerate(self.body)]
        maps.append(F.max_pool2d(maps[-1], 1, 2))
        return OrderedDict(zip(("0", "1", "2", "3", "pool"), maps))


class Shared(Backbone):
    """The same under our names."""

    spec = SPEC

    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(SPEC, self.pyramid(images).values()))


def reference(kind: type, *, second: bool = False, **options: Any) -> FasterRCNN:
    """A small one of torchvision's models, in its first or second version."""
    classes = 2 if kind is KeypointRCNN else CLASSES + 1
    norm = nn.BatchNorm2d if second else None
    box_head = TwoMLPHead(WIDTH * 49, HIDDEN)
    if second:
        options["rpn_head"] = RPNHead(WIDTH, 3, conv_depth=2)
        box_head = FastRCNNConvFCHead((WIDTH, 7, 7), [HIDDEN] * 4, [HIDDEN], norm_layer=norm)
    if kind is MaskRCNN:
        options["mask_head"] = MaskRCNNHeads(WIDTH, (HIDDEN, HIDDEN), 1, norm_layer=norm)
        options["mask_predictor"] = MaskRCNNPredictor(HIDDEN, HIDDEN, classes)
        # They fix the number of channels between the two at 256 unless both are given.
    if kind is KeypointRCNN:
        options["keypoint_head"] = KeypointRCNNHeads(WIDTH, (HIDDEN, HIDDEN))
        options["keypoint_predictor"] = KeypointRCNNPredictor(HIDDEN, 3)
    return kind(
        Pyramid(),
        min_size=96,
        max_size=200,
        box_head=box_head,
        box_predictor=FastRCNNPredictor(HIDDEN, classes),
        **options,
    ).eval()


def make_lively(model: FasterRCNN, images: Sequence[Tensor]) -> None:
    boxes = model.roi_heads.box_predictor
    head = model.rpn.head
    for layer, std in ((head.cls_logits, 2.0), (head.bbox_pred, 0.3), (boxes.cls_score, 3.0), (boxes.bbox_pred, 1.0)):
        spread(layer, std, lambda: model(images))


def ours(theirs: FasterRCNN, **options: Any) -> MultiTaskModel:
    """Our model on their backbone, with their weights."""
    heads: dict[str, nn.Module] = {}
    importer: Any = MaskImporter
    second: dict[str, Any] = {}
    options.setdefault("fcs", (HIDDEN, HIDDEN))
    if len(theirs.rpn.head.conv) == 2:
        second = {"norm": "batch"}
        options |= {"rpn_convs": 2, "convs": (HIDDEN,) * 4, "fcs": (HIDDEN,), **second}
    if isinstance(theirs, KeypointRCNN):
        importer = KeypointImporter
        heads["keypoints"] = RoIKeypoint(SPEC, PERSON, convs=(HIDDEN, HIDDEN))
    elif isinstance(theirs, MaskRCNN):
        heads["masks"] = RoIMask(SPEC, LABELS, convs=(HIDDEN, HIDDEN), hidden=HIDDEN, **second)
    labels = PERSON if isinstance(theirs, KeypointRCNN) else LABELS
    heads["boxes"] = RCNN(SPEC, labels, **options)
    model = MultiTaskModel(Shared(theirs.backbone), None, heads)  # type: ignore[arg-type]
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("backbone")}
    # It follows four convolutions and a Flatten.
    linear = {"roi_heads.box_head.5.": "heads.boxes.branch.fc.0."} if second else {}
    state = rename(state, {**BOX_NAMES, **linear, **importer.names})
    model.heads.load_state_dict({k.removeprefix("heads."): v for k, v in state.items()})
    return model.eval()


def batch_for(theirs: FasterRCNN, images: Sequence[Tensor], targets: dict[str, list] | None = None) -> MixedBatch:
    resized, _ = theirs.transform(list(images))
    info = [
        ImageInfo(
            i, "", tuple(image.shape[-2:]), size, (size[1] / image.shape[2], 0, 0, 0, size[0] / image.shape[1], 0)
        )
        for i, (image, size) in enumerate(zip(images, resized.image_sizes))
    ]
    return MixedBatch(resized.tensors, tuple(info), targets or {})


def theirs_of(target: InstanceTarget) -> dict[str, Tensor]:
    return {
        "boxes": target.boxes, "labels": target.labels + 1, "masks": target.masks.dense(), "keypoints": target.keypoints
    }  # fmt: skip


def images_of(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.rand(3, *size) for size in sizes]


@pytest.mark.parametrize("kind", [FasterRCNN, MaskRCNN, KeypointRCNN])
def test_same_detections_as_torchvision(kind: type) -> None:
    torch.manual_seed(0)
    theirs = reference(kind)
    images = images_of((75, 111), (133, 97))
    make_lively(theirs, images)
    with torch.no_grad():
        expected = theirs(images)
        got = ours(theirs).predict(batch_for(theirs, images))
    for row, want in enumerate(expected):
        assert len(want["boxes"]) == 100
        assert kind is KeypointRCNN or len(want["labels"].unique()) >= 4
        torch.testing.assert_close(got["boxes"][row].boxes, want["boxes"], atol=1e-4, rtol=0)
        torch.testing.assert_close(got["boxes"][row].scores, want["scores"], atol=1e-5, rtol=0)
        assert torch.equal(got["boxes"][row].labels + 1, want["labels"])
        if kind is MaskRCNN:
            assert mask_agreement(got["masks"][row].rles, want["masks"][:, 0] > 0.5).min() > 0.999
        if kind is KeypointRCNN:
            torch.testing.assert_close(
                got["keypoints"][row].keypoints[..., :2], want["keypoints"][..., :2], atol=1e-3, rtol=0
            )
            torch.testing.assert_close(
                got["keypoints"][row].keypoints[..., 2], want["keypoints_scores"], atol=1e-4, rtol=0
            )


def mask_agreement(rles: Sequence[dict[str, Any]], masks: Tensor) -> Tensor:
    from pycocotools import mask as codec

    same = []
    for rle, mask in zip(rles, masks):
        own = torch.from_numpy(codec.decode(rle)).bool()
        union = (own | mask).sum()
        same.append(((own & mask).sum() / union) if union else torch.tensor(1.0))
    return torch.stack(same)


@pytest.mark.parametrize(("kind", "second"), [(MaskRCNN, False), (KeypointRCNN, False), (MaskRCNN, True)])
def test_same_losses_as_torchvision(kind: type, second: bool) -> None:
    torch.manual_seed(1)
    theirs = reference(kind, second=second, rpn_batch_size_per_image=BIG, box_batch_size_per_image=BIG)
    images = images_of((96, 128), (96, 128))
    make_lively(theirs, images)
    labels = [0, 0, 0] if kind is KeypointRCNN else [0, 3, 5]
    targets = [
        instances([[4, 8, 60, 70], [50, 20, 122, 90], [10, 10, 40, 40]], labels),
        instances([[30, 30, 90, 80]], labels[1:2]),
    ]
    model = ours(theirs, rpn_samples=BIG, samples=BIG).train()
    name = "keypoints" if kind is KeypointRCNN else "masks"
    batch = batch_for(theirs, images, {"boxes": targets, name: targets})
    losses, _ = model.losses(batch)
    want = theirs.train()(images, [theirs_of(target) for target in targets])
    pairs = {
        "loss_objectness": losses["boxes"]["rpn_objectness"],
        "loss_rpn_box_reg": losses["boxes"]["rpn_box"],
        "loss_classifier": losses["boxes"]["box_class"],
        "loss_box_reg": losses["boxes"]["box_delta"],
        f"loss_{name.removesuffix('s')}": losses[name][name.removesuffix("s")],
    }
    for key, value in pairs.items():
        assert value > 1e-3
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-6)
