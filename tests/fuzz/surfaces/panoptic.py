"""Panoptic JSON and PNGs: the source, ``coco-eval --type panoptic``, and ``panoptic-convert`` between all formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np

from tests.fuzz.coco_changes import DETECTION_CHANGES, FILE_CHANGES
from tests.fuzz.harness import WrongResult
from tests.fuzz.images import mutate_image
from tests.fuzz.mutations import FILE_NAMES, NUMBERS, STRINGS, VALUES, mutate_json
from tests.fuzz.surfaces.coco import require, same
from visionkit.data.coco import CocoSource
from visionkit.data.panoptic_formats import FORMATS, convert
from visionkit.data.shapes import write_shapes
from visionkit.errors import UserError
from visionkit.evaluate.panoptic import PanopticEvaluator
from visionkit.evaluate.panoptic_files import evaluate_panoptic
from visionkit.types import IGNORE, PanopticPrediction, PanopticTarget

PIPELINE = """\
backbone: {{name: unet_encoder, width: 4, norm: batch, dropout: 0.0}}
heads:
  semantic: {{name: unet, levels: [c4, c3, c2, c1, c0], norm: batch}}
sources:
  fuzz: {{name: coco, images: {folder}/images, panoptic: {folder}/coco.json, train: {{}}, val: {{}}}}
train: {{steps: 1, batch_size: 2, workers: 0}}
evaluate: {{batch_size: 2}}
"""


def seeds(folder: Path) -> list[Path]:
    """Synthetic scenes in the three formats, and predictions in which some pixels belong to another segment.

    Each folder has a file ``options.json`` that says what is done with it.
    """
    base = folder / "base"
    write_shapes(str(base), 3, 0, (48, 64))
    (base / "panoptic.json").rename(base / "coco.json")
    (base / "panoptic").rename(base / "coco")
    for name in ("instances.json", "parameters.json", "semantic"):
        path = base / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(base / "coco", base / "dt")
    data = json.loads((base / "coco.json").read_text())
    for file in sorted((base / "dt").iterdir()):
        pixels = cv2.imread(str(file))
        pixels[10:20, 10:30] = pixels[0, 0]
        cv2.imwrite(str(file), pixels)
    for row in data["annotations"]:
        present = np.unique(cv2.imread(str(base / "dt" / row["file_name"]))[..., 2])
        row["segments_info"] = [s for s in row["segments_info"] if s["id"] in present]
    (base / "dt.json").write_text(json.dumps({"annotations": data["annotations"]}))
    source = str(base / "coco.json")
    convert("coco", "two-channel", source, str(base / "two-channel"))
    (base / "two-channel.json").write_text(json.dumps({key: data[key] for key in ("images", "categories")}))
    convert("coco", "detection", source, str(base / "detection.json"))
    uses = [("source",), ("evaluate",), *((one, other) for one in FORMATS for other in FORMATS if one != other)]
    for use in uses:
        shutil.copytree(base, folder / "-".join(use))
        (folder / "-".join(use) / "options.json").write_text(json.dumps({"use": use}))
    return [folder / "-".join(use) for use in (*uses[:2] * 3, *uses[2:])]


def mutate(rng: Random, folder: Path) -> None:
    use = json.loads((folder / "options.json").read_text())["use"]
    name = {"source": "coco", "evaluate": rng.choice(("coco", "dt"))}.get(use[0], use[0])
    pngs = sorted((folder / name).glob("*.png"))
    if not pngs or rng.random() < 0.7:
        changes = DETECTION_CHANGES if use[0] == "detection" else SEGMENT_CHANGES
        mutate_json(rng, folder / f"{name}.json", FILE_CHANGES + changes)
    if pngs and rng.random() < 0.45:
        path = rng.choice(pngs)
        rng.choice((mutate_image, _pixels, _pixels, _replace_file))(rng, path)


def run(folder: Path) -> None:
    use = json.loads((folder / "options.json").read_text())["use"]
    if use == ["source"]:
        _read_source(folder)
    elif use == ["evaluate"]:
        _evaluate(folder)
    else:
        source, target = use
        out = folder / "out" / ("target" if target == "two-channel" else "target.json")
        convert(source, target, str(folder / f"{source}.json"), str(out), folder=str(folder / source))
        if source == "coco" and target == "detection":  # whatever was written can be read again
            convert(target, source, str(out), str(folder / "again.json"))


def command(folder: Path) -> list[str]:
    use = json.loads((folder / "options.json").read_text())["use"]
    if use == ["source"]:
        (folder / "pipeline.yaml").write_text(PIPELINE.format(folder=folder))
        return ["validate", str(folder / "pipeline.yaml"), "--all-images"]
    if use == ["evaluate"]:
        return ["coco-eval", "--type", "panoptic", "--gt", str(folder / "coco.json"), "--dt", str(folder / "dt.json")]
    out = folder / ("out" if use[1] == "two-channel" else "out.json")
    return ["panoptic-convert", str(folder / f"{use[0]}.json"), "--from", use[0], "--to", use[1], "--out", str(out)]


def _read_source(folder: Path) -> None:
    source = CocoSource(
        images=str(folder / "images"), panoptic=str(folder / "coco.json"), panoptic_masks=str(folder / "coco")
    )
    labels = source.labels["panoptic"]
    evaluator = PanopticEvaluator(source, labels)
    for index in range(len(source)):
        sample = source.load(index, source.tasks)
        size = sample.info.original_size
        target = sample.targets.get("panoptic")
        if target is None:
            continue
        if not isinstance(target, PanopticTarget):
            raise WrongResult(f"the target of the task panoptic is a {type(target).__name__}")
        count = len(target)
        require(
            tuple(target.segments.shape) == size, f"segments of shape {target.segments.shape} for an image of {size}"
        )
        require(int(target.segments.min()) >= 0 and int(target.segments.max()) <= count, "a segment without a label")
        require(bool(((target.labels >= 0) & (target.labels < len(labels))).all()), f"labels {target.labels.tolist()}")
        semantic = set(np.unique(sample.targets["semantic"].labels.numpy()).tolist())  # type: ignore[attr-defined]
        require(semantic <= {*range(len(labels)), IGNORE}, f"semantic labels {semantic}")
        evaluator.add([PanopticPrediction.from_target(target, sample.info, labels)], [target], [sample.info])
    for name, value in evaluator.result().items():
        require(value is None or np.isnan(value) or 0 <= value <= 1, f"{name} is {value}")


def _evaluate(folder: Path) -> None:
    """Both backends must agree, apart from the order in which they add."""
    results: list[dict[str, float]] = []
    errors: list[UserError] = []
    for backend in ("fast", "numpy"):
        try:
            results.append(evaluate_panoptic(folder / "coco.json", folder / "dt.json", backend=backend, per_class=True))  # type: ignore[arg-type]
        except UserError as error:
            errors.append(error)
    if results and errors:
        raise WrongResult(f"only one backend refuses the files: {errors}")
    if errors:
        raise errors[0]
    first, second = ({name: None if v is None else round(v, 12) for name, v in r.items()} for r in results)
    require(same(first, second), f"the backends differ: {results}")  # type: ignore[arg-type]


def _pixels(rng: Random, path: Path) -> None:
    """Pixels of another segment, or the file with another number of channels, depth or size."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    form = rng.randrange(7)
    if form <= 1:
        image[5 : rng.randrange(6, 48), 5:20] = [rng.randrange(256) for _ in range(3)]
    elif form == 2:
        image = image[..., 2]
    elif form == 3:
        image = np.dstack([image, np.full(image.shape[:2], rng.choice((0, 255)), np.uint8)])
    elif form == 4:
        image = image.astype(np.uint16) * rng.choice((1, 257))
    elif form == 5:
        image = cv2.resize(image, rng.choice(((48, 64), (64, 47), (1, 1), (128, 96), (7000, 5))), interpolation=0)
    else:
        image = np.full_like(image, rng.choice((0, 255)))
    cv2.imwrite(str(path), image)


def _replace_file(rng: Random, path: Path) -> None:
    """A file that is missing, a folder, an image of another format, or that of another image."""
    form = rng.randrange(5)
    others = sorted(path.parent.glob("*.png"))
    data = rng.choice(others).read_bytes()
    path.unlink()
    if form == 1:
        path.mkdir()
    elif form == 2:
        path.write_bytes(b"not an image")
    elif form == 3:
        path.write_bytes(data)
    elif form == 4:
        path.write_bytes(
            cv2.imencode(rng.choice((".jpg", ".bmp", ".webp")), cv2.imdecode(np.frombuffer(data, np.uint8), 1))[1]
        )


def _segments(rng: Random, data: Any) -> None:
    """A segment with an unusual ID, category, crowd flag or area; segments that repeat or are missing."""
    row = rng.choice(data["annotations"])
    segments = row["segments_info"]
    segment = rng.choice(segments)
    form = rng.randrange(7)
    if form <= 1:
        segment["id"] = rng.choice(
            (0, -1, 256, 2**24 - 1, 2**24, 2**31, "1", None, True, 1.0, 1.5, [], *NUMBERS, *STRINGS)
        )
    elif form == 2:
        segment["category_id"] = rng.choice((0, -1, 999, "1", None, True, 1.0, 1.5, [], *NUMBERS))
    elif form == 3:
        for other in segments:
            other["iscrowd"] = rng.choice((1, 1, "0", True, None, 2, "", [], 0.5))
    elif form == 4:
        segment["area"] = rng.choice((0, -1, None, "12", 1e30, 3, *NUMBERS))
    elif form == 5:
        segments.append(dict(segment))
    else:
        segments.remove(segment)


def _rows(rng: Random, data: Any) -> None:
    """An annotation with another file name, image or list of segments."""
    row = rng.choice(data["annotations"])
    form = rng.randrange(6)
    if form <= 1:
        row["file_name"] = rng.choice((*FILE_NAMES, rng.choice(data["annotations"])["file_name"]))
    elif form == 2:
        row["image_id"] = rng.choice((rng.choice(data["annotations"])["image_id"], 999, "1", None, 1.0, *NUMBERS))
    elif form == 3:
        row["segments_info"] = rng.choice(([], {}, None, [None], {"1": {}}, rng.choice(VALUES)))
    elif form == 4:
        for other in data["annotations"]:
            other["image_id"] = rng.choice((str, float, lambda v: v + 1))(other["image_id"])
    else:
        for other in data["annotations"]:
            other.pop("file_name", None)


SEGMENT_CHANGES = (_segments, _segments, _rows, _rows)
