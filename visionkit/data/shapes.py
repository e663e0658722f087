"""``shapes``: a data set of drawn scenes in COCO format, made when it is first asked for."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import cv2
import numpy as np

from visionkit import rle
from visionkit.data.coco import CocoSource
from visionkit.data.scenes import (
    COLORS,
    FIRST_OBJECT,
    KEYPOINTS,
    SKELETON,
    STUFF,
    THINGS,
    Scene,
    Thing,
    draw_scene,
)
from visionkit.errors import DataError
from visionkit.numbers import Count, Positive

VERSION = 3  # of the drawings: a data set of another version is not the one that was asked for
SIGMAS = (0.079, 0.107, 0.072, 0.072, 0.089, 0.089)  # COCO's for head (shoulder), hip, elbow and ankle


class ShapesSource(CocoSource):
    """Drawn scenes: circles, squares, triangles, stars and robots with keypoints, before sky, grass, water and sand.

    Labelled for ``boxes``, ``masks``, ``keypoints`` (robots), ``semantic`` and ``panoptic`` (all nine classes).

    Args:
        images: how many.
        seed: of the drawings; the same seed gives the same scenes.
        size: height and width in pixels, or one number for both.
        root: the folder; ``None``: one under ``runs/shapes`` that is named after the other arguments. It is written if
            it is not there.
        tasks: as for a COCO source.

    Raises:
        DataError: ``root`` holds something else.
    """

    check_args: ClassVar[Mapping[str, Any]] = {"root": "{data}", "images": 8, "size": 96}

    def __init__(
        self,
        *,
        images: Positive = 8,
        seed: Count = 0,
        size: Positive | list[Positive] = 160,
        root: str | None = None,
        tasks: list[str] | None = None,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        root = root or os.path.join("runs", "shapes", f"{images}-{height}x{width}-seed{seed}-v{VERSION}")
        write_shapes(root, images, seed, (height, width))
        super().__init__(
            images=os.path.join(root, "images"),
            annotations=os.path.join(root, "instances.json"),
            panoptic=os.path.join(root, "panoptic.json"),
            tasks=tasks,
        )


def write_shapes(
    folder: str,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (160, 160),
    *,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Write a data set: ``images/*.jpg``, ``instances.json``, ``panoptic.json``, ``panoptic/*.png``, and
    ``semantic/*.png`` (label maps; things first, then stuff).

    The folder appears whole or not at all. Where it is there already, with these parameters, nothing is done.

    Args:
        progress: called with the number of scenes drawn so far.

    Returns:
        Whether it was written now.

    Raises:
        DataError: the folder holds something else, or the parameters make no sense.
    """
    if count < 1 or seed < 0 or min(size) < 32:
        raise DataError(f"shapes: {count} images with seed {seed} of {size[0]}x{size[1]} pixels; at least 1 image, "
                        "seed 0 and 32x32 pixels are needed")  # fmt: skip
    wanted = {"description": "visionkit shapes", "version": VERSION, "images": count, "seed": seed, "size": list(size)}
    if _is_there(folder, wanted):
        return False
    parent = os.path.dirname(os.path.abspath(folder))
    temporary = ""
    try:
        os.makedirs(parent, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".shapes-", dir=parent)
        _write(temporary, wanted, progress or (lambda _: None))
        os.chmod(temporary, 0o755)
        if os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)
        os.rename(temporary, folder)
    except OSError as error:
        if _is_there(folder, wanted):  # another process was faster
            return False
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return True


def _is_there(folder: str, wanted: dict[str, Any]) -> bool:
    if not os.path.isdir(folder) or not os.listdir(folder):
        return False
    try:
        with open(os.path.join(folder, "parameters.json"), encoding="utf-8") as file:
            found = json.load(file)
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{folder}: holds something that is not a data set of shapes; name another folder") from None
    if found != wanted:
        differ = ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in wanted.items() if found.get(k) != v)
        raise DataError(f"{folder}: holds other shapes ({differ}); name another folder or remove this one")
    return True


def _write(folder: str, wanted: dict[str, Any], progress: Callable[[int], None]) -> None:
    for name in ("images", "panoptic", "semantic"):
        os.mkdir(os.path.join(folder, name))
    height, width = wanted["size"]
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for number in range(1, wanted["images"] + 1):
        # Every scene has a generator of its own: a larger data set begins with the smaller one.
        scene = draw_scene(np.random.default_rng((wanted["seed"], number)), height, width)
        name = f"{number:06d}"
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        objects += [_annotation(scene, thing, number, len(objects) + i) for i, thing in enumerate(scene.things, 1)]
        panoptic.append({"image_id": number, "file_name": f"{name}.png", "segments_info": _segments(scene)})
        bgr = scene.image[..., ::-1]
        _write_image(os.path.join(folder, "images", f"{name}.jpg"), bgr, cv2.IMWRITE_JPEG_QUALITY, 95)
        ids = np.zeros((height, width, 3), np.uint8)
        ids[..., 2] = scene.segments  # OpenCV writes BGR: the number goes to red, the lowest byte
        _write_image(os.path.join(folder, "panoptic", f"{name}.png"), ids, cv2.IMWRITE_PNG_COMPRESSION, 1)
        labels = _label_table(scene)[scene.segments]
        _write_image(os.path.join(folder, "semantic", f"{name}.png"), labels, cv2.IMWRITE_PNG_COMPRESSION, 1)
        progress(number)
    categories = _categories()
    things = [{k: v for k, v in c.items() if k != "isthing"} for c in categories if c["isthing"]]
    everything = [{k: c[k] for k in ("id", "name", "supercategory", "isthing", "color")} for c in categories]
    head = {"info": wanted, "images": images}
    _write_json(folder, "instances.json", head | {"annotations": objects, "categories": things})
    _write_json(folder, "panoptic.json", head | {"annotations": panoptic, "categories": everything})
    _write_json(folder, "parameters.json", wanted)


def _write_image(path: str, image: np.ndarray, option: int, value: int) -> None:
    if not cv2.imwrite(path, image, [option, value]):
        raise OSError(f"{path} could not be written")


def _write_json(folder: str, name: str, data: dict[str, Any]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(data, file, separators=(",", ":"))


def _categories() -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for number, name in enumerate((*THINGS, *STUFF), 1):
        thing = name in THINGS
        out.append({"id": number, "name": name, "supercategory": "thing" if thing else "stuff",
                    "isthing": int(thing), "color": list(COLORS[name])})  # fmt: skip
        if name == "robot":
            out[-1] |= {
                "keypoints": list(KEYPOINTS),
                "skeleton": [[a + 1, b + 1] for a, b in SKELETON],
                "sigmas": list(SIGMAS),
            }
    return out


def _annotation(scene: Scene, thing: Thing, image: int, number: int) -> dict[str, Any]:
    """A thing as a COCO annotation: a polygon while nothing hides it, else run lengths of what is to be seen."""
    mask = scene.segments == thing.segment
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    area = int(np.count_nonzero(mask))
    box: list[float] = [x, y, width, height]
    segmentation: Any
    if thing.polygon is not None and area == thing.total:
        corners = thing.polygon
        low, high = corners.min(0), corners.max(0)
        box = [round(float(v), 2) for v in (*low, *(high - low))]
        segmentation = [corners.ravel().tolist()]
    else:
        code = rle.encode_crop(mask[y : y + height, x : x + width], x, y, *mask.shape)
        segmentation = {"size": list(mask.shape), "counts": code["counts"].decode()}
    entry: dict[str, Any] = {
        "id": number, "image_id": image, "category_id": 1 + THINGS.index(thing.kind), "bbox": box, "area": area,
        "iscrowd": int(thing.crowd), "segmentation": segmentation,
    }  # fmt: skip
    entry["num_keypoints"] = 0
    if thing.keypoints is not None:
        keypoints = [_keypoint(scene, thing, point) for point in thing.keypoints]
        entry["keypoints"] = [value for point in keypoints for value in point]
        entry["num_keypoints"] = sum(point[2] > 0 for point in keypoints)
    return entry


def _keypoint(scene: Scene, thing: Thing, point: np.ndarray) -> list[float]:
    """x, y and visibility: 2 seen, 1 hidden by another thing, 0 outside the image."""
    x, y = round(float(point[0]), 2), round(float(point[1]), 2)
    height, width = scene.segments.shape
    if not (0 <= x < width and 0 <= y < height):
        return [0, 0, 0]
    return [x, y, 2 if scene.segments[int(y), int(x)] == thing.segment else 1]


def _label_table(scene: Scene) -> np.ndarray:
    """Segment number -> class."""
    table = np.full(256, 255, np.uint8)
    table[1 : 1 + len(STUFF)] = len(THINGS) + np.arange(len(STUFF))
    table[[t.segment for t in scene.things]] = [THINGS.index(t.kind) for t in scene.things]
    return table


def _segments(scene: Scene) -> list[dict[str, Any]]:
    areas = np.bincount(scene.segments.ravel(), minlength=256)
    table = _label_table(scene)
    crowd = {thing.segment for thing in scene.things if thing.crowd}
    out = []
    for number in np.flatnonzero(areas).tolist():
        box = cv2.boundingRect((scene.segments == number).view(np.uint8))
        out.append({"id": number, "category_id": 1 + int(table[number]), "iscrowd": int(number in crowd),
                    "bbox": list(box), "area": int(areas[number])})  # fmt: skip
    return out


assert len(STUFF) < FIRST_OBJECT
