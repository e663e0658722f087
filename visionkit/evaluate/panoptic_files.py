"""Panoptic quality of files in COCO's panoptic format, with the numbers of COCO's own tool. Imports no torch.

The fast backend is hotcoco, which decodes PNGs several times faster than OpenCV and on all cores; the other one is
:mod:`visionkit.evaluate.panoptic_metrics`, which also says what is wrong with files that hotcoco refuses.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from visionkit.coco import png
from visionkit.coco.panoptic import PanopticFile, PanopticMaps, read_panoptic, read_panoptic_results
from visionkit.errors import DataError
from visionkit.evaluate.panoptic_metrics import Counts, Segments, match, summary
from visionkit.layers.segments import count_pixels

Backend = Literal["fast", "numpy"]

# hotcoco decodes one pair of maps per core, at 6 bytes per pixel and more.
FAST_PIXELS = 2**24
# The share of images whose areas are counted although nothing depends on them, and how many are always.
SAMPLE_SHARE, SAMPLE_LEAST = 0.1, 4


def evaluate_panoptic(
    ground_truth: str | Path,
    results: str | Path,
    gt_folder: str | Path | None = None,
    dt_folder: str | Path | None = None,
    *,
    backend: Backend = "fast",
    per_class: bool = False,
) -> dict[str, float]:
    """PQ, SQ and RQ over all classes, of things (``PQ_th`` ...) and of stuff (``PQ_st`` ...), as fractions.

    Every image that has a segmentation in the ground truth must have one in the results. Areas are counted in the PNGs,
    not taken from the JSON file; if those of the file are others, a warning says so. Pixels of the ground truth whose
    ID is in no ``segments_info`` are neither void nor a segment. Where an image has several crowds of one class, all of
    them excuse a prediction; COCO's images never have, and COCO's tool would look at the last one alone.

    Args:
        ground_truth: COCO panoptic JSON.
        results: the same with ``annotations`` alone, or their list; one without ``file_name`` is a PNG that is named
            after its image, as ``visionkit predict`` writes it.
        gt_folder, dt_folder: their folders of PNGs; ``None``: beside the JSON, of the same name.
        backend: who computes; the numbers are the same, but for the order in which they are added up.
        per_class: also ``PQ/<class name>``.

    Returns:
        The metrics; NaN where no class of a kind occurs.

    Raises:
        DataError: a file is missing, wrong, or contradicts another; the message names the file and the image.
    """
    truth = read_panoptic(str(ground_truth), None if gt_folder is None else str(gt_folder))
    found = read_panoptic_results(str(results), None if dt_folder is None else str(dt_folder), truth)
    pixels = _check_sizes(truth, found)
    counts = _fast(truth, found) if backend == "fast" and pixels.max(initial=0) <= FAST_PIXELS else None
    if counts is None:
        counts = _by_numpy(truth, found)
    _warn_of_maps(truth.maps, pixels)
    things = [category.isthing for category in truth.categories]
    return summary(counts, things, [category.name for category in truth.categories] if per_class else None)


def _check_sizes(truth: PanopticFile, found: PanopticMaps) -> np.ndarray:
    """(A,) pixels of every annotated image. Raises ``DataError`` if the two maps of an image differ in size."""
    pixels, others = [], []
    for row, image in enumerate(truth.maps.image_ids):
        paths = truth.maps.png(row), found.png(found.row_of[image])
        sizes = [png.read_header(path)[:2] for path in paths]
        if sizes[0] != sizes[1]:
            raise DataError(f"{paths[1]}: image {image}: the maps of the ground truth and of the prediction have "
                            f"{_by(sizes[0])} and {_by(sizes[1])} pixels")  # fmt: skip
        size = tuple(truth.images.sizes[truth.images.row[image]].tolist())
        if size != sizes[0] and 0 not in size:
            others.append(f"image {image}: {_by(size)} instead of {_by(sizes[0])}")
        pixels.append(sizes[0][0] * sizes[0][1])
    if others:
        warnings.warn(f"{truth.path}: the height and width of {len(others)} of {len(truth.maps)} images are not those "
                      f"of their PNGs ({others[0]}); the PNGs count", stacklevel=3)  # fmt: skip
    return np.array(pixels, np.int64)


def _by(size: Any) -> str:
    return f"{size[0]}x{size[1]}"


def _fast(truth: PanopticFile, found: PanopticMaps) -> Counts | None:
    """The counts by hotcoco; ``None`` where it refuses the files."""
    from hotcoco.panoptic import PanopticEval

    maps = truth.maps
    if not len(maps) or _crowds_of_one_class(maps):
        return None
    categories = [
        {"id": label + 1, "name": c.name, "isthing": int(c.isthing)} for label, c in enumerate(truth.categories)
    ]
    images = [{"id": row, "file_name": str(row)} for row in range(len(maps))]
    with tempfile.TemporaryDirectory() as scratch:
        # What was checked is what is evaluated, whatever form it had. Without areas, hotcoco counts pixels.
        for name, side, rows in (
            ("gt", maps, range(len(maps))),
            ("dt", found, [found.row_of[image] for image in maps.image_ids]),
        ):
            annotations = [_record(side, row, image) for image, row in enumerate(rows)]
            data = {"images": images, "categories": categories, "annotations": annotations}
            Path(scratch, f"{name}.json").write_bytes(msgspec.json.encode(data))
        gt, dt = os.path.join(scratch, "gt.json"), os.path.join(scratch, "dt.json")
        try:
            run = PanopticEval(gt, dt, gt_folder=maps.folder, pred_folder=found.folder)
            run.evaluate()
        except (OSError, ValueError, TypeError, KeyError):
            return None
    per_class = run.results()["per_class"]
    return np.array([[per_class[label + 1][part] for part in ("tp", "fp", "fn", "iou")]
                     for label in range(len(categories))], np.float64)  # fmt: skip


def _record(maps: PanopticMaps, row: int, image: int) -> dict[str, Any]:
    """An annotation of COCO's format."""
    own = maps.segments(row)
    columns = maps.ids[own].tolist(), (maps.labels[own] + 1).tolist(), maps.crowd[own].tolist()
    segments = [{"id": i, "category_id": c, "iscrowd": int(crowd)} for i, c, crowd in zip(*columns)]
    return {"image_id": image, "file_name": maps.file_names[row], "segments_info": segments}


def _crowds_of_one_class(maps: PanopticMaps) -> bool:
    """Whether an image has two crowds of the same class."""
    rows = np.repeat(np.arange(len(maps)), np.diff(maps.starts))[maps.crowd]
    pairs = np.stack((rows, maps.labels[maps.crowd]), 1)
    return len(np.unique(pairs, axis=0)) < len(pairs)


def _by_numpy(truth: PanopticFile, found: PanopticMaps) -> Counts:
    counts = np.zeros((len(truth.categories), 4))
    for row, image in enumerate(truth.maps.image_ids):
        other = found.row_of[image]
        maps = png.read_ids(truth.maps.png(row)), png.read_ids(found.png(other))
        predicted = _segments(found, other)
        try:
            counts += match(maps[0], _segments(truth.maps, row), maps[1], predicted, len(truth.categories))
        except DataError as error:
            raise DataError(f"{found.png(other)}: image {image}: {error}") from None
        absent = predicted.ids[count_pixels(maps[1], predicted.ids) == 0].tolist()
        if absent:
            raise DataError(
                f"{found.png(other)}: image {image}: segment {min(absent)} of its segments_info has no pixel"
            )
    return counts


def _segments(maps: PanopticMaps, row: int) -> Segments:
    own = maps.segments(row)
    return Segments(maps.ids[own].astype(np.int64), maps.labels[own].astype(np.int64), maps.crowd[own])


def _warn_of_maps(maps: PanopticMaps, pixels: np.ndarray) -> None:
    """Warn of areas in the JSON file that are not the pixels of their segments, and of pixels of unknown segments.

    No metric depends on the areas, so that a sample of the images is counted. If it holds something to warn of, or if
    the areas of an image are more than its pixels, all images are counted.
    """
    totals = np.concatenate(([0.0], np.cumsum(np.nan_to_num(maps.areas))))[maps.starts]
    every = max(1, len(maps) // max(SAMPLE_LEAST, round(SAMPLE_SHARE * len(maps))))
    if not (np.diff(totals) > pixels).any() and not any(_count(maps, range(0, len(maps), every))):
        return
    areas, unknown = _count(maps, range(len(maps)))
    if areas:
        warnings.warn(f"{maps.path}: the area of {len(areas)} of {len(maps.ids)} segments is not their number of "
                      f"pixels ({areas[0]}); pixels are counted; COCO's tool uses the areas", stacklevel=3)  # fmt: skip
    if unknown:
        warnings.warn(f"{maps.path}: the PNGs of {len(unknown)} of {len(maps)} images hold segments that are not in "
                      f"segments_info ({unknown[0]}), which are not void, as in COCO's tool", stacklevel=3)  # fmt: skip


def _count(maps: PanopticMaps, rows: range) -> tuple[list[str], list[str]]:
    """Of these images, the segments whose area in the file is another, and the images with unknown segments."""
    areas: list[str] = []
    unknown: list[str] = []
    for row in rows:
        image, own, ids = maps.image_ids[row], maps.segments(row), png.read_ids(maps.png(row))
        counted, given = count_pixels(ids, maps.ids[own]), maps.areas[own]
        areas += [
            f"segment {maps.ids[own][i]} of image {image}: {given[i]:g} instead of {counted[i]}"
            for i in np.flatnonzero((given != counted) & ~np.isnan(given)).tolist()
        ]
        if other := np.count_nonzero(ids) - int(counted.sum()):
            unknown.append(f"{maps.png(row)}: {other} pixels")
    return areas, unknown
