"""COCO's metrics of boxes, masks and keypoints, with the numbers of pycocotools. Imports no torch.

The fast backend is hotcoco: its precision and recall equal pycocotools' to the last bit on thousands of random and
adversarial sets at 10 to 60 times the speed; faster-coco-eval, equal too, gains a factor of 1.4 to 3.5.

One case is known where they differ, and there pycocotools is asked whatever the backend: an annotation with the id 0,
which pycocotools never counts as found.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionkit.errors import DataError
from visionkit.evaluate.coco_files import (
    check_results,
    check_truth,
    looks_clean,
    number_of_keypoints,
    read_json,
)

Type = Literal["bbox", "segm", "keypoints"]
Backend = Literal["fast", "pycocotools"]

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""Fall-off of object keypoint similarity of COCO's 17 keypoints of a person."""
DEFAULT_SIGMA = 0.05
"""The fall-off of every keypoint where neither the labels nor COCO give one; it lies amid COCO's own."""


def evaluate_coco(
    ground_truth: Mapping[str, Any] | str | Path,
    detections: Sequence[Mapping[str, Any]] | str | Path,
    type: Type,
    *,
    backend: Backend = "fast",
    sigmas: Sequence[float] | None = None,
    image_ids: Sequence[int | str] | None = None,
    max_dets: Sequence[int] | None = None,
    per_class: bool = False,
) -> dict[str, float]:
    """COCO's metrics by their names, as fractions; -1 where there is nothing to find, as COCO has it.

    Boxes and masks: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. Keypoints: AP, AP50, AP75, APm,
    APl, AR, AR50, AR75, ARm, ARl.

    Args:
        ground_truth: a COCO dictionary or its file. An annotation without ``iscrowd`` is no crowd, one without ``area``
            has that of its box.
        detections: COCO results or their file. As in pycocotools, the area of a detection, by which APs, APm and APl
            leave out unmatched ones, is that of its ``bbox`` where it has one, else of its mask or keypoints.
        type: what to compare.
        backend: who computes; the numbers are the same.
        sigmas: fall-off of each keypoint; else ``COCO_SIGMAS`` for 17 keypoints and ``DEFAULT_SIGMA`` for others.
        image_ids: evaluate these images only.
        max_dets: how many of the best detections of an image and class count, by default (1, 10, 100) and for keypoints
            (20,). AP is that of the largest; AR has one value for each.
        per_class: also ``AP/<class name>``.

    Raises:
        DataError: a file is missing or not JSON; a detection names an unknown image or category, has keypoints of the
            wrong length, or lacks what ``type`` compares.
    """
    limits = sorted(set(max_dets)) if max_dets else [20] if type == "keypoints" else [1, 10, 100]
    run = None
    if backend == "fast" and isinstance(ground_truth, str | Path) and isinstance(detections, str | Path):
        run = _from_files(Path(ground_truth), Path(detections), type, limits, sigmas, image_ids)
    if run is None:
        run = _from_memory(ground_truth, detections, type, limits, sigmas, image_ids, backend)
    precision, recall, names = run
    metrics = _summary(precision, recall, type, limits)
    if per_class:
        metrics |= {f"AP/{name}": _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
    return metrics


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


Run = tuple[np.ndarray, np.ndarray, list[str]]
"""Precision, recall and the names of the classes in their order."""


def _from_files(
    truth_file: Path,
    results_file: Path,
    type: Type,
    limits: Sequence[int],
    sigmas: Sequence[float] | None,
    image_ids: Sequence[int | str] | None,
) -> Run | None:
    """hotcoco on the files themselves, or ``None`` where something in them asks for a closer look."""
    import hotcoco

    try:
        with _quiet():
            truth = hotcoco.COCO(str(truth_file))
            results = truth.load_res(str(results_file))
            text = truth_file.read_bytes(), results_file.read_bytes()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    images, categories, annotations = truth.get_img_ids(), truth.get_cat_ids(), truth.get_ann_ids()
    if truth.load_warnings or results.load_warnings or 0 in annotations or not (images and categories and annotations):
        return None
    orphans = len(truth.get_ann_ids(img_ids=images, cat_ids=categories)) < len(annotations)
    if orphans or len(set(categories)) < len(categories):
        return None
    classes = truth.load_cats(categories)
    points = 0
    if type == "keypoints":
        points = number_of_keypoints({"categories": classes, "annotations": truth.load_anns(annotations[:1])})
    counts = {
        "images": len(images),
        "categories": len(categories),
        "annotations": len(annotations),
        "detections": len(results.get_ann_ids()),
    }
    if not looks_clean(*text, type, counts, points):
        return None
    if image_ids is not None and (not len(image_ids) or not set(image_ids) <= set(images)):
        return None
    falloff = keypoint_sigmas(sigmas, points) if type == "keypoints" else None
    names = [c["name"] for c in sorted(classes, key=lambda c: c["id"])]
    return *_hotcoco(truth, results, type, limits, falloff, image_ids), names


def _from_memory(
    ground_truth: Mapping[str, Any] | str | Path,
    detections: Sequence[Mapping[str, Any]] | str | Path,
    type: Type,
    limits: Sequence[int],
    sigmas: Sequence[float] | None,
    image_ids: Sequence[int | str] | None,
    backend: Backend,
) -> Run:
    """Either backend on checked and completed copies of the records."""
    data, where = _read(ground_truth, "ground truth")
    truth = check_truth(data, where, type)
    data, where = _read(detections, "detections")
    # Where the ground truth does not say it, any number of keypoints will do.
    found = {"annotations": data if isinstance(data, list) else []}
    points = number_of_keypoints(truth) or (0 if sigmas is None else len(sigmas)) or number_of_keypoints(found)
    falloff = keypoint_sigmas(sigmas, points) if type == "keypoints" else None
    results = check_results(data, truth, where, type, points)

    names = [c["name"] for c in sorted(truth["categories"], key=lambda c: c["id"])]
    known = {image["original_id"]: image["id"] for image in truth["images"]}
    if unknown := set(image_ids or ()) - known.keys():
        raise DataError(f"the ground truth has no images {sorted(map(str, unknown))[:5]}")
    wanted = sorted(known.values()) if image_ids is None else sorted({known[i] for i in image_ids})
    if not wanted or not names:
        shape = 10, 101, len(names), 3 if type == "keypoints" else 4, len(limits)
        return -np.ones(shape), -np.ones((shape[0], *shape[2:])), names
    if any(annotation["id"] == 0 for annotation in truth["annotations"]):
        warnings.warn("pycocotools never counts the annotation with the id 0 as found; number from 1", stacklevel=3)
        backend = "pycocotools"
    if backend == "pycocotools":
        return *_pycocotools(truth, results, type, limits, falloff, wanted), names
    import hotcoco

    with _quiet():
        loaded = hotcoco.COCO(truth)
        return *_hotcoco(loaded, loaded.load_res(results), type, limits, falloff, wanted), names


def _hotcoco(
    truth: Any,
    results: Any,
    type: Type,
    limits: Sequence[int],
    sigmas: np.ndarray | None,
    image_ids: Sequence[int | str] | None,
) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    with _quiet():
        evaluation: Any = hotcoco.COCOeval(truth, results, type)
        evaluation.params.max_dets = list(limits)
        if image_ids is not None:
            evaluation.params.img_ids = list(image_ids)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas.tolist()
        evaluation.evaluate()
        evaluation.accumulate()
        arrays = evaluation.eval
    return np.asarray(arrays["precision"]), np.asarray(arrays["recall"])


def _pycocotools(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    type: Type,
    limits: Sequence[int],
    sigmas: np.ndarray | None,
    image_ids: Sequence[int | str],
) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        loaded, found = COCO(), COCO()
        loaded.dataset = truth
        loaded.createIndex()
        found.dataset = truth | {"annotations": []}
        found.createIndex()
        evaluation: Any = COCOeval(loaded, loaded.loadRes(results) if results else found, type)
        evaluation.params.maxDets = list(limits)
        evaluation.params.imgIds = list(image_ids)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _read(given: Any, name: str) -> tuple[Any, str]:
    """The data and what messages call it."""
    return (read_json(given), str(given)) if isinstance(given, str | Path) else (given, name)


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
    """hotcoco writes warnings straight to file descriptor 2; what matters of them becomes an error here."""
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
