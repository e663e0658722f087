"""COCO's metrics of boxes, masks and keypoints, with the numbers of pycocotools. Imports no torch.

The fast backend is hotcoco: its precision and recall equal pycocotools' to the last bit on thousands of random and
adversarial sets at 10 to 60 times the speed; faster-coco-eval, equal too, gains a factor of 1.4 to 3.5.

One case is known where they differ, and there pycocotools is used whatever the backend: an annotation with the ID 0,
which pycocotools never counts as matched.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionkit.coco.annotations import CocoAnnotations, Part, parse_annotations, read_annotations
from visionkit.coco.categories import all_sigmas
from visionkit.coco.plain import is_plain
from visionkit.coco.report import some
from visionkit.coco.results import ResultColumns, read_results
from visionkit.coco.segmentation import NONE
from visionkit.coco.values import same_id
from visionkit.errors import DataError
from visionkit.rle import box_mask

log = logging.getLogger("visionkit.evaluate")

Type = Literal["bbox", "segm", "keypoints"]
Backend = Literal["fast", "pycocotools"]

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""Fall-off of object keypoint similarity of COCO's 17 keypoints of a person."""
DEFAULT_SIGMA = 0.05
"""The fall-off of every keypoint where neither the labels nor COCO give one; it lies amid COCO's own."""

_PARTS: Mapping[str, tuple[Part, ...]] = {
    "bbox": ("boxes",), "segm": ("boxes", "masks"), "keypoints": ("boxes", "keypoints")
}  # fmt: skip


def evaluate_coco(
    ground_truth: CocoAnnotations | Mapping[str, Any] | str | Path,
    detections: Sequence[Mapping[str, Any]] | str | Path,
    type: Type,
    *,
    backend: Backend = "fast",
    sigmas: Sequence[float] | None = None,
    image_ids: Sequence[int | str] | None = None,
    max_dets: Sequence[int] | None = None,
    per_class: bool = False,
) -> dict[str, float]:
    """COCO's metrics by their names, as fractions; -1 where there is nothing to detect, as in COCO.

    Boxes and masks: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. Keypoints: AP, AP50, AP75, APm,
    APl, AR, AR50, AR75, ARm, ARl.

    Args:
        ground_truth: a COCO annotation file, its dictionary, or what the reader made of it. Objects without a mask are
            regions to ignore where masks are compared: detections inside their box are neither right nor wrong.
        detections: COCO results or their file. As in pycocotools, the area of a detection, by which APs, APm and APl
            leave out unmatched ones, is that of its ``bbox`` where it has one, else of its mask or keypoints.
        type: what to compare.
        backend: what computes; the numbers are the same.
        sigmas: fall-off of each keypoint; else the ``sigmas`` of the categories, else ``COCO_SIGMAS`` for 17 keypoints
            and ``DEFAULT_SIGMA`` for others.
        image_ids: evaluate these images only.
        max_dets: how many of the best detections of an image and class count, by default (1, 10, 100) and for keypoints
            (20,). AP is that of the largest; AR has one value for each.
        per_class: also ``AP/<class name>``.

    Raises:
        DataError: a file can't be read, or an entry is wrong; the message names the file, the ID and the field.
    """
    limits = sorted(set(max_dets)) if max_dets else [20] if type == "keypoints" else [1, 10, 100]
    truth = _as_annotations(ground_truth, type)
    if type == "segm" and len(truth) and (truth.masks.kind == NONE).all():
        raise DataError(f"{truth.path}: no annotation has a segmentation to compare masks with")
    files = None
    if backend == "fast" and isinstance(ground_truth, str | Path) and isinstance(detections, str | Path):
        files = (str(ground_truth), str(detections)) if truth.plain and is_plain(detections, truth, type) else None
    inputs = _Inputs.build(truth, detections, files, type, sigmas, image_ids, limits)
    if inputs.is_empty:
        shape = 10, 101, len(truth.categories), 3 if type == "keypoints" else 4, len(limits)
        precision, recall = -np.ones(shape), -np.ones((shape[0], *shape[2:]))
    else:
        if 0 in truth.ids:
            warnings.warn("pycocotools never counts the annotation with the ID 0 as matched; number from 1",
                          stacklevel=2)  # fmt: skip
            backend = "pycocotools"
        precision, recall = (_pycocotools if backend == "pycocotools" else _hotcoco)(inputs)
    metrics = _summary(precision, recall, type, limits)
    if per_class:
        metrics |= {f"AP/{name}": _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(inputs.class_names)}
    return metrics


def _as_annotations(given: CocoAnnotations | Mapping[str, Any] | str | Path, type: Type) -> CocoAnnotations:
    if isinstance(given, CocoAnnotations):
        return given
    if isinstance(given, str | Path):
        truth = read_annotations(given, parts=_PARTS[type])
        for line in truth.report.lines:
            log.warning(line)
        return truth
    return parse_annotations(given, "ground truth", parts=_PARTS[type])


def _summary(precision: np.ndarray, recall: np.ndarray, type: Type, limits: Sequence[int]) -> dict[str, float]:
    """The official numbers of precision (threshold, recall, class, area, limit) and recall (without recall)."""
    half, three_quarters = 0, 5  # of the thresholds 0.5, 0.55 ... 0.95
    areas = ("m", "l") if type == "keypoints" else ("s", "m", "l")
    out = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[half, :, :, 0, -1]),
        "AP75": _mean(precision[three_quarters, :, :, 0, -1]),
    }
    out |= {f"AP{area}": _mean(precision[:, :, :, 1 + i, -1]) for i, area in enumerate(areas)}
    if type == "keypoints":
        out["AR"] = _mean(recall[:, :, 0, -1])
        out["AR50"] = _mean(recall[half, :, 0, -1])
        out["AR75"] = _mean(recall[three_quarters, :, 0, -1])
    else:
        out |= {f"AR{limit}": _mean(recall[:, :, 0, i]) for i, limit in enumerate(limits)}
    return out | {f"AR{area}": _mean(recall[:, :, 1 + i, -1]) for i, area in enumerate(areas)}


def _mean(values: np.ndarray) -> float:
    """The mean of what there is: entries of -1 belong to classes without objects."""
    there = values[values > -1]
    return float(np.mean(there)) if len(there) else -1.0


@dataclass
class _Inputs:
    """What both backends are given: IDs from 1 in the order in which pycocotools walks the original ones.

    Attributes:
        image_ids, category_ids: new ID of each image and category of the ground truth.
        wanted: new IDs of the images that are evaluated.
        sigmas: (K,) for keypoints.
        files: the ground truth and the results, where other tools read the same from these as we do.
    """

    truth: CocoAnnotations
    given: Sequence[Mapping[str, Any]] | str | Path
    files: tuple[str, str] | None
    type: Type
    limits: Sequence[int]
    image_ids: np.ndarray
    category_ids: np.ndarray
    class_names: list[str]
    wanted: list[int]
    sigmas: np.ndarray | None

    @cached_property
    def results(self) -> ResultColumns:
        """The detections as arrays."""
        return read_results(self.given, self.truth, self.type).columns()

    @classmethod
    def build(
        cls,
        truth: CocoAnnotations,
        detections: Sequence[Mapping[str, Any]] | str | Path,
        files: tuple[str, str] | None,
        type: Type,
        sigmas: Sequence[float] | None,
        image_ids: Sequence[int | str] | None,
        limits: Sequence[int],
    ) -> _Inputs:
        new_images = _ranks(truth.images.ids)
        new_categories = _ranks([category.id for category in truth.categories])
        rows = range(len(truth.images)) if image_ids is None else [
            truth.images.row.get(same_id(image_id), -1) for image_id in image_ids
        ]  # fmt: skip
        if unknown := [image_id for image_id, row in zip(image_ids or (), rows) if row < 0]:
            raise DataError(f"{truth.path}: has no images with the IDs {some(unknown, 5)}")
        inputs = cls(
            truth, detections, files, type, limits, new_images, new_categories,
            class_names=_class_names(truth, new_categories),
            wanted=sorted({int(new_images[row]) for row in rows}),
            sigmas=None,
        )  # fmt: skip
        points = len(truth.keypoint_names)
        if files is None:
            keypoints = (
                inputs.results.keypoints
            )  # where the ground truth doesn't say it, any number of keypoints will do
            points = points or (0 if keypoints is None else keypoints.shape[1]) or len(sigmas or ())
        if type == "keypoints":
            inputs.sigmas = keypoint_sigmas(
                sigmas or all_sigmas(truth.categories, truth.keypoint_names) or None, points
            )
        return inputs

    @property
    def is_empty(self) -> bool:
        return not self.wanted or not self.class_names

    def images(self) -> list[dict[str, Any]]:
        sizes = self.truth.images.sizes.tolist()
        return [{"id": int(i), "height": h, "width": w} for i, (h, w) in zip(self.image_ids, sizes)]

    def categories(self) -> list[dict[str, Any]]:
        return [{"id": int(i), "name": category.name} for i, category in zip(self.category_ids, self.truth.categories)]

    def annotation_ids(self) -> np.ndarray:
        """From 1; the ID 0 stays as it is."""
        return np.where(self.truth.ids == 0, 0, np.arange(1, len(self.truth) + 1))

    def ignored(self) -> np.ndarray:
        """(N,) crowds, and where masks are compared, objects without one."""
        truth = self.truth
        return truth.crowd | (truth.masks.kind == NONE) if self.type == "segm" else truth.crowd

    def truth_masks(self) -> list[Any]:
        """The segmentation of each object; that of an object without a mask is its box."""
        masks, boxes = self.truth.masks, self.truth.boxes
        sizes = masks.sizes.tolist()
        return [
            masks.to_coco(row) if masks.kind[row] != NONE else _text(box_mask(boxes[row].tolist(), *sizes[row]))
            for row in range(len(masks))
        ]

    def annotations(self) -> list[dict[str, Any]]:
        """The ground truth as COCO has it."""
        truth = self.truth
        columns: dict[str, list[Any]] = {
            "id": self.annotation_ids().tolist(),
            "image_id": self.image_ids[truth.image_rows].tolist(),
            "category_id": self.category_ids[truth.labels].tolist(),
            "bbox": truth.boxes.tolist(),
            "area": truth.areas.tolist(),
            "iscrowd": self.ignored().astype(int).tolist(),
        }
        if self.type == "segm":
            columns["segmentation"] = self.truth_masks()
        if self.type == "keypoints":
            assert self.sigmas is not None
            points = truth.keypoints
            points = np.zeros((len(truth), len(self.sigmas), 3)) if points is None else points
            columns["keypoints"] = points.reshape(len(truth), 3 * points.shape[1]).tolist()
            columns["num_keypoints"] = truth.num_keypoints.tolist()
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def detections(self) -> list[dict[str, Any]]:
        """The detections as COCO has them. pycocotools measures their areas from what is given."""
        results = self.results
        columns: dict[str, list[Any]] = {
            "image_id": self.image_ids[results.image_rows].tolist(),
            "category_id": self.category_ids[results.labels].tolist(),
            "score": results.scores.tolist(),
        }
        if self.type != "segm" or self.has_boxes:
            columns["bbox"] = results.boxes.tolist()
        if self.type == "segm":
            columns["segmentation"] = self.detection_masks()
        if self.type == "keypoints":
            assert results.keypoints is not None
            columns["keypoints"] = results.keypoints.reshape(len(results), 3 * results.keypoints.shape[1]).tolist()
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    @property
    def has_boxes(self) -> bool:
        """Whether the area of a detection is that of its box."""
        boxes = self.results.boxes
        return bool((self.results.areas == boxes[:, 2] * boxes[:, 3]).all())

    def detection_masks(self) -> list[Any]:
        sizes = self.truth.images.sizes[self.results.image_rows].tolist()
        return [{"size": size, "counts": mask.decode()} for size, mask in zip(sizes, self.results.masks or ())]


def _ranks(ids: Sequence[int | str]) -> np.ndarray:
    """1, 2, 3 ... in ascending order, numbers before strings: the order in which pycocotools walks them."""
    order = sorted(range(len(ids)), key=lambda row: (isinstance(ids[row], str), ids[row]))
    out = np.zeros(len(ids), np.int64)
    out[order] = np.arange(1, len(ids) + 1)
    return out


def _class_names(truth: CocoAnnotations, category_ids: np.ndarray) -> list[str]:
    """The names of the categories in the order of their IDs; those that occur twice are told apart by their IDs."""
    count = Counter(category.name for category in truth.categories)
    ordered = [truth.categories[row] for row in np.argsort(category_ids)]
    return [c.name if count[c.name] == 1 else f"{c.name} (ID {c.id})" for c in ordered]


def _text(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _hotcoco(inputs: _Inputs) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    with _quiet():
        loaded = _load_files(inputs)
        truth, results = loaded or _load_columns(inputs)
        evaluation: Any = hotcoco.COCOeval(truth, results, inputs.type)
        evaluation.params.max_dets = list(inputs.limits)
        new_ids = inputs.image_ids.tolist()
        original = dict(zip(new_ids, inputs.truth.images.ids)) if loaded else dict(zip(new_ids, new_ids))
        evaluation.params.img_ids = [original[image] for image in inputs.wanted]
        if inputs.sigmas is not None:
            evaluation.params.kpt_oks_sigmas = inputs.sigmas.tolist()
        evaluation.evaluate()
        evaluation.accumulate()
        arrays = evaluation.eval
    return np.asarray(arrays["precision"]), np.asarray(arrays["recall"])


def _load_files(inputs: _Inputs) -> tuple[Any, Any] | None:
    """Ground truth and detections from the files, which hotcoco reads faster than it is given columns."""
    import hotcoco

    if inputs.files is None:
        return None
    try:
        loaded = hotcoco.COCO(inputs.files[0])
        return loaded, loaded.load_res(inputs.files[1])
    except (OSError, ValueError, TypeError, KeyError):  # it is stricter, about negative IDs for instance
        return None


def _load_columns(inputs: _Inputs) -> tuple[Any, Any]:
    """Ground truth and detections, column by column where hotcoco takes columns."""
    import hotcoco

    if inputs.type == "keypoints" or not len(inputs.truth):
        loaded = hotcoco.COCO(
            {"images": inputs.images(), "categories": inputs.categories(), "annotations": inputs.annotations()}
        )
    else:
        truth = inputs.truth
        loaded = hotcoco.COCO.from_arrays(
            inputs.images(), inputs.categories(), inputs.image_ids[truth.image_rows],
            inputs.category_ids[truth.labels], truth.boxes, ids=inputs.annotation_ids(), area=truth.areas,
            iscrowd=inputs.ignored(), segmentation=inputs.truth_masks() if inputs.type == "segm" else None,
        )  # fmt: skip
    results = inputs.results
    if inputs.type == "keypoints" or not len(results):
        return loaded, loaded.load_res(inputs.detections())
    table = np.empty((len(results), 7))
    table[:, 0] = inputs.image_ids[results.image_rows]
    table[:, 1:5] = results.boxes
    table[:, 5] = results.scores
    table[:, 6] = inputs.category_ids[results.labels]
    if inputs.type == "bbox":
        return loaded, loaded.load_res(table)
    found = loaded.load_res(table, segmentation=inputs.detection_masks())
    found.update_anns(ids=np.arange(1, len(results) + 1), area=results.areas)
    return loaded, found


def _pycocotools(inputs: _Inputs) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        loaded, found = COCO(), COCO()
        header = {"images": inputs.images(), "categories": inputs.categories()}
        loaded.dataset = header | {"annotations": inputs.annotations()}
        loaded.createIndex()
        found.dataset = header | {"annotations": []}
        found.createIndex()
        results = inputs.detections()
        evaluation: Any = COCOeval(loaded, loaded.loadRes(results) if results else found, inputs.type)
        evaluation.params.maxDets = list(inputs.limits)
        evaluation.params.imgIds = inputs.wanted
        if inputs.sigmas is not None:
            evaluation.params.kpt_oks_sigmas = inputs.sigmas
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def keypoint_sigmas(given: Sequence[float] | None, points: int) -> np.ndarray:
    """(K,) fall-off of each keypoint: as given, else COCO's for 17, else ``DEFAULT_SIGMA``.

    Raises:
        DataError: not as many are given as there are keypoints, or one is not above 0.
    """
    if given is None:
        return np.array(COCO_SIGMAS) if points == len(COCO_SIGMAS) else np.full(points, DEFAULT_SIGMA)
    if len(given) != points or min(given) <= 0:
        raise DataError(f"{points} keypoints need {points} sigmas above 0, not {list(given)}")
    return np.array(given, dtype=np.float64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """hotcoco writes warnings straight to file descriptor 2; what matters of them was checked before."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
