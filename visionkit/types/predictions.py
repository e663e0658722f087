"""What a head says of one image, in *original image coordinates*, and how that is drawn and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from visionkit.types.batch import ImageInfo
from visionkit.types.labels import LabelSet
from visionkit.types.targets import InstanceTarget, SemanticTarget


class Prediction:
    """Base of all predictions. A new kind of prediction says here how it looks and what files it makes.

    Attributes:
        covers: whether nothing of the image is seen in its drawing, which then stands beside those of other heads; a
            head that makes such leaves a sheet over time.
        located: whether its files show what is where in the image, and so have its size.
    """

    covers: ClassVar[bool] = False
    located: ClassVar[bool] = True

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        """An overlay on ``image`` ((H, W, 3) uint8 RGB, not changed) of the same size."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it is drawn: give it a method draw(image, labels)"
        )

    @classmethod
    def from_target(cls, target: Any, info: ImageInfo, labels: LabelSet) -> Self:
        """What a perfect head would say of an image with this target, in original coordinates."""
        raise NotImplementedError(f"{cls.__name__} cannot be made from a target: give it a classmethod from_target")

    def to_coco(self, image_id: int | str, labels: LabelSet) -> list[dict[str, Any]]:
        """Records of a COCO results file (category ids are ``labels.ids``); empty where the kind has none."""
        return []

    def files(self) -> dict[str, np.ndarray]:
        """Pictures that hold the prediction itself, by file name suffix (``{"": label_map}``): written as PNG."""
        return {}


@dataclass
class BoxPrediction(Prediction):
    """Boxes of one image, best first.

    Attributes:
        boxes: (N, 4) float32, left, top, right, bottom in pixels of the original image.
        scores: (N,) float32 in 0 ... 1.
        labels: (N,) int64 labels of the head.
        drawn_from: the score from which pictures show an object, unless they are told another.
    """

    drawn_from: ClassVar[float] = 0.5
    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(
                f"boxes {tuple(self.boxes.shape)}, scores {tuple(self.scores.shape)} and labels "
                f"{tuple(self.labels.shape)} do not belong together"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_target(cls, target: InstanceTarget, info: ImageInfo, labels: LabelSet) -> Self:
        return cls(**_found(target))

    def to_coco(self, image_id: int | str, labels: LabelSet) -> list[dict[str, Any]]:
        xyxy = self.boxes.double().cpu()
        xywh = torch.cat((xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]), 1).tolist()
        return [
            {"image_id": image_id, "category_id": labels.ids[c], "bbox": box, "score": score}
            for box, score, c in zip(xywh, self.scores.tolist(), self.labels.tolist())
        ]

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        from visionkit.draw import draw_instances

        return draw_instances(image, self, labels)


def _found(target: InstanceTarget) -> dict[str, Tensor]:
    """Boxes, scores of 1 and labels of the objects; a crowd is none."""
    objects = ~target.crowd
    boxes = target.boxes[objects]
    return {"boxes": boxes, "scores": torch.ones(len(boxes)), "labels": target.labels[objects]}


@dataclass
class MaskPrediction(BoxPrediction):
    """Boxes with a mask each.

    Attributes:
        rles: one COCO run-length encoding an object, ``{"size": [h, w], "counts": bytes}``; bitmaps are never kept.
    """

    rles: Sequence[dict[str, Any]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rles) != len(self.boxes):
            raise ValueError(f"{len(self.rles)} masks for {len(self.boxes)} boxes")

    @classmethod
    def from_target(cls, target: InstanceTarget, info: ImageInfo, labels: LabelSet) -> Self:
        if target.masks is None:
            raise ValueError(f"the objects of {info.path or info.id} have no masks")
        target = target.select(target.masks.annotated)
        assert target.masks is not None
        rles = [rle for rle in target.masks.select(~target.crowd).to_rles() if rle is not None]
        return cls(**_found(target), rles=rles)

    def to_coco(self, image_id: int | str, labels: LabelSet) -> list[dict[str, Any]]:
        """As COCO's format for segmentations has it, without boxes: pycocotools would take areas from them."""
        records = super().to_coco(image_id, labels)
        for record, rle in zip(records, self.rles):
            del record["bbox"]
            record["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        return records


@dataclass
class KeypointPrediction(BoxPrediction):
    """Boxes with keypoints each.

    Attributes:
        keypoints: (N, K, 3) float32 of x, y in original pixels and a score of each keypoint (higher is surer).
    """

    keypoints: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 3))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keypoints.ndim != 3 or len(self.keypoints) != len(self.boxes) or self.keypoints.shape[2] != 3:
            raise ValueError(f"keypoints of shape {tuple(self.keypoints.shape)} for {len(self.boxes)} boxes")

    @classmethod
    def from_target(cls, target: InstanceTarget, info: ImageInfo, labels: LabelSet) -> Self:
        if target.keypoints is None:
            raise ValueError(f"the objects of {info.path or info.id} have no keypoints")
        keypoints = target.keypoints[~target.crowd].clone()
        keypoints[..., 2] = (keypoints[..., 2] > 0).float()
        return cls(**_found(target), keypoints=keypoints)

    def to_coco(self, image_id: int | str, labels: LabelSet) -> list[dict[str, Any]]:
        records = super().to_coco(image_id, labels)
        flat = self.keypoints.double().cpu().flatten(1).tolist()
        for record, keypoints in zip(records, flat):
            record["keypoints"] = keypoints
        return records


@dataclass
class SemanticPrediction(Prediction):
    """A class for every pixel of one image.

    Attributes:
        labels: (H, W) uint8 label map at the original size.
        scores: (classes, H, W) probabilities, where they were asked for.
    """

    labels: Tensor
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels.ndim != 2:
            raise ValueError(f"a label map has shape (H, W), not {tuple(self.labels.shape)}")

    @classmethod
    def from_target(cls, target: SemanticTarget, info: ImageInfo, labels: LabelSet) -> Self:
        return cls(target.labels.to(torch.uint8))

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        from visionkit.draw import draw_semantic

        return draw_semantic(image, self.labels.cpu().numpy(), labels)

    def files(self) -> dict[str, np.ndarray]:
        return {"": self.labels.to(torch.uint8).cpu().numpy()}
