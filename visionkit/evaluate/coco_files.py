"""COCO ground truth and results: read, checked, and put into the one form that both evaluators understand."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from visionkit.errors import DataError
from visionkit.layers.rle import from_segmentation

Record = dict[str, Any]

NEEDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
"""What each type of evaluation compares."""


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises ``DataError`` with file and line."""
    try:
        return json.loads(Path(path).read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not valid JSON: it is no text") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def check_truth(truth: Any, where: str, type: str) -> dict[str, Any]:
    """A copy of the ground truth with ids from 1 in their old order, and with ``iscrowd`` and ``area`` everywhere.

    An annotation whose id is 0 keeps it: pycocotools treats it in its own way. The old ids of images and categories are
    kept as ``original_id``.
    """
    for part in ("images", "annotations", "categories"):
        if not isinstance(truth, Mapping) or not isinstance(truth.get(part), list):
            raise DataError(f"{where}: COCO ground truth needs a list '{part}'")
    images = numbering(image["id"] for image in truth["images"])
    categories = numbering(category["id"] for category in truth["categories"])
    if len(categories) < len(truth["categories"]):
        raise DataError(f"{where}: two categories have the same id; the ids are {_some(categories)}")
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    seen: set[Any] = set()
    annotations = []
    for index, entry in enumerate(truth["annotations"]):
        name = f"{where}: annotation {entry.get('id', f'number {index + 1}')}"
        _require(entry, ("id", "image_id", "category_id", "segmentation" if type == "segm" else "bbox"), name)
        if entry["id"] in seen:
            raise DataError(f"{name}: another annotation has the same id")
        seen.add(entry["id"])
        for key, known in (("image_id", images), ("category_id", categories)):
            if entry[key] not in known:
                raise DataError(f"{name}: its {key} {entry[key]!r} is not among the {len(known)} known: {_some(known)}")
        new = dict(entry)
        new.update(
            id=0 if entry["id"] == 0 else index + 1,
            image_id=images[entry["image_id"]],
            category_id=categories[entry["category_id"]],
            iscrowd=int(entry.get("iscrowd") or 0),
        )
        if type != "segm":
            _numbers(entry["bbox"], 4, f"{name}: bbox")
        else:
            new["segmentation"] = _truth_mask(entry["segmentation"], sizes[entry["image_id"]], name)
        if entry.get("area") is None:
            _require(entry, ("bbox",), name)
            new["area"] = float(entry["bbox"][2] * entry["bbox"][3])
        annotations.append(new)
    if type == "keypoints":
        _complete_keypoints(annotations, truth["categories"], where)
    return {
        "images": [{**image, "id": images[image["id"]], "original_id": image["id"]} for image in truth["images"]],
        "categories": [{**c, "id": categories[c["id"]], "original_id": c["id"]} for c in truth["categories"]],
        "annotations": annotations,
    }


def check_results(results: Any, truth: Mapping[str, Any], where: str, type: str, points: int) -> list[Record]:
    """Copies of the results that hold nothing but what is evaluated, with the ids of :func:`check_truth`.

    Args:
        results: what was read.
        truth: from :func:`check_truth`.
        where: the file, for messages.
        type: what is compared.
        points: number of keypoints of an instance.
    """
    if not isinstance(results, list):
        raise DataError(f"{where}: COCO results are a list of detections, not {_kind(results)}")
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    need = NEEDS[type]
    if type == "bbox" and results and isinstance(results[0], dict) and "bbox" not in results[0]:
        need = next((key for key in NEEDS.values() if key in results[0]), need)  # boxes are those of masks or points
    with_box = bool(results) and isinstance(results[0], dict) and bool(results[0].get("bbox"))
    for index, entry in enumerate(results):
        if not isinstance(entry, Mapping):
            raise DataError(f"{where}: detection number {index + 1} is not an object, but {_kind(entry)}")
        _require(entry, ("image_id", "category_id", "score", need), f"{where}: detection number {index + 1}")
    known = {}
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        known[key] = {thing["original_id"]: thing["id"] for thing in truth[part]}
        if unknown := {entry[key] for entry in results} - known[key].keys():
            raise DataError(
                f"{where}: the ground truth has no {key} {_some(unknown)}; it knows {len(known[key])}, "
                f"such as {_some(known[key])}"
            )
    checked = []
    for index, entry in enumerate(results):
        name = f"{where}: detection number {index + 1} (image {entry['image_id']})"
        _numbers([entry["score"]], 1, f"{name}: score")
        image = known["image_id"][entry["image_id"]]
        new = {"image_id": image, "category_id": known["category_id"][entry["category_id"]], "score": entry["score"]}
        if with_box != bool(entry.get("bbox")):
            raise DataError(
                f"{name}: either all detections have a bbox or none; the first {'has' if with_box else 'has none'}"
            )
        if with_box:
            new["bbox"] = _numbers(entry["bbox"], 4, f"{name}: bbox")
        if need == "keypoints":
            new["keypoints"] = _numbers(entry["keypoints"], 3 * points, f"{name}: keypoints")
        elif need == "segmentation":
            new["segmentation"] = _mask(entry["segmentation"], sizes[image], name)
        checked.append(new)
    return checked


def number_of_keypoints(truth: Mapping[str, Any]) -> int:
    """Keypoints of an instance: as many as a category names, else as the first annotation has; 0 where none has any."""
    named = (category.get("keypoints") for category in truth.get("categories", ()))
    given = (entry.get("keypoints") for entry in truth["annotations"] if isinstance(entry, Mapping))
    return next((len(names) for names in named if names), 0) or next((len(flat) // 3 for flat in given if flat), 0)


def looks_clean(truth: bytes, results: bytes, type: str, counts: Mapping[str, int], points: int) -> bool:
    """Whether two files can be evaluated as they are, told from their text in a tenth of the time of reading them.

    Every key that is needed must be there as often as there are records, and nothing unusual may occur; where this
    says no, the slow and exact checks look closer, and find a fault or nothing.

    Args:
        truth, results: the texts.
        type: what is compared.
        counts: numbers of ``images``, ``categories``, ``annotations`` and ``detections``.
        points: number of keypoints of an instance.
    """
    objects, found = counts["annotations"], counts["detections"]
    if type == "keypoints":
        lengths, truth = _cut_keypoints(
            truth
        )  # what else has this key are the names of the keypoints in the categories
        if lengths.count(3 * points) != objects or len(lengths) > objects + counts["categories"]:
            return False
        lengths, results = _cut_keypoints(results)
        if lengths.count(3 * points) != found or len(lengths) != found:
            return False
    keys = {"bbox": ["bbox"], "segm": ["segmentation"], "keypoints": ["bbox", "num_keypoints"]}[type]
    if any(_count(truth, key) != objects for key in ("image_id", "category_id", "iscrowd", "area", *keys)):
        return False
    keys = {"bbox": ["bbox"], "segm": ["segmentation"], "keypoints": []}[type]
    if any(_count(results, key) != found for key in ("image_id", "category_id", "score", *keys)):
        return False
    if not results.lstrip().startswith(b"[") or _count(results, "bbox") not in (0, found):
        return False
    if any(_has_value(text, word) for word in (b"null", b"Infinity", b"NaN") for text in (truth, results)):
        return False
    if type == "segm":
        sized = min(_count(truth, "height"), _count(truth, "width")) >= counts["images"]
        listed = re.search(rb'"(segmentation|counts)"\s*:\s*\[', results)
        return sized and not listed and not re.search(rb'"segmentation"\s*:\s*\[\s*(\[\s*)?\]', truth)
    return True


def numbering(ids: Iterable[Any]) -> dict[Any, int]:
    """1, 2, 3 ... for ids in ascending order, numbers before names: the order in which pycocotools walks them."""
    return {old: i + 1 for i, old in enumerate(sorted(set(ids), key=lambda v: (isinstance(v, str), v)))}


def _cut_keypoints(text: bytes) -> tuple[list[int], bytes]:
    """The lengths of the lists of this key, and the text without what is in them, which is most of it."""
    first, *parts = text.split(b'"keypoints"')
    ends = [part.find(b"]") for part in parts]
    lengths = [part.count(b",", 0, end) + 1 for part, end in zip(parts, ends)]
    return lengths, first + b"".join([part[end:] for part, end in zip(parts, ends)])


def _count(text: bytes, key: str) -> int:
    return text.count(b'"%s"' % key.encode())


def _has_value(text: bytes, word: bytes) -> bool:
    """Whether ``word`` occurs as a value; run lengths, written as letters, hold any word by chance."""
    ends = re.finditer(word + rb"\s*[,\]}]", text)
    return any(text[max(0, end.start() - 32) : end.start()].rstrip(b" \t\r\n-")[-1:] in b":,[" for end in ends)


def _complete_keypoints(annotations: Sequence[Record], categories: Sequence[Mapping], where: str) -> None:
    """Give every annotation ``keypoints`` (none labelled where it has none) and ``num_keypoints``."""
    points = number_of_keypoints({"categories": categories, "annotations": annotations})
    for new in annotations:
        keypoints = new["keypoints"] = new.get("keypoints") or [0] * (3 * points)
        _numbers(keypoints, 3 * points, f"{where}: annotation {new['id']}: keypoints")
        if new.get("num_keypoints") is None:
            new["num_keypoints"] = sum(v > 0 for v in keypoints[2::3])


def _truth_mask(segmentation: Any, size: tuple[Any, Any], name: str) -> Any:
    """The segmentation as it is, once it is known that pycocotools can read it."""
    if isinstance(segmentation, list):
        if None in size:
            raise DataError(f"{name}: its image has no height and width, and its polygons need them")
        if not segmentation or any(len(p) < 6 or len(p) % 2 for p in segmentation):
            raise DataError(f"{name}: a segmentation is one or more polygons of three or more x, y pairs")
        return segmentation
    return _mask(segmentation, size, name)


def _mask(segmentation: Any, size: tuple[Any, Any], name: str) -> Record:
    """A compressed encoding, its counts a string, of any form of segmentation."""
    try:
        rle = from_segmentation(segmentation, *size)
        height, width = rle["size"]
    except (TypeError, KeyError, ValueError, IndexError):
        form = "polygons of three or more x, y pairs or {'size': [height, width], 'counts': ...}"
        raise DataError(f"{name}: segmentation must be {form}, not {segmentation!r:.60}") from None
    if None not in size and (height, width) != size:
        raise DataError(f"{name}: a mask of {height}x{width} pixels on an image of {size[0]}x{size[1]}")
    return {"size": [height, width], "counts": rle["counts"].decode()}


def _require(entry: Mapping[str, Any], keys: Collection[str], name: str) -> None:
    for key in keys:
        if key not in entry:
            raise DataError(f"{name} has no '{key}'; it has {', '.join(map(str, entry))}")


def _numbers(values: Any, length: int, name: str) -> Any:
    try:
        if len(values) == length and all(map(isfinite, values)):
            return values
    except TypeError:
        pass
    seen = f"{len(values)} values" if isinstance(values, list) and len(values) != length else f"{values!r:.60}"
    raise DataError(f"{name} must be {length} finite number{'s' * (length > 1)}, not {seen}")


def _some(values: Collection[Any], most: int = 5) -> str:
    """A few of the values, in order, and how many more there are."""
    first = [repr(v) for v in list(numbering(values))[:most]]
    return ", ".join(first) + (f" and {len(values) - most} more" if len(values) > most else "")


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, dict) else f"{value!r:.40}"
