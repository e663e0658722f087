"""Results files: ``coco-eval`` of boxes, masks and keypoints with both backends, against pycocotools itself."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.fuzz.coco_changes import DETECTION_CHANGES, FILE_CHANGES
from tests.fuzz.harness import WrongResult, in_fork
from tests.fuzz.mutations import NUMBERS, STRINGS, mutate_json
from tests.fuzz.surfaces.coco import require, same
from visionkit.data.shapes import write_shapes
from visionkit.errors import UserError
from visionkit.evaluate import evaluate_coco

TYPES = ("bbox", "segm", "keypoints")
SIGMA = 0.05  # of every keypoint, where the file gives none and there are not 17


def seeds(folder: Path) -> list[Path]:
    """For each type, the ground truth of synthetic scenes, and its objects, moved a little, as detections."""
    write_shapes(str(folder / "scenes"), 4, 0, (48, 64))
    truth = json.loads((folder / "scenes" / "instances.json").read_text())
    for category in truth["categories"]:
        category.pop("sigmas", None)
    rng = Random(0)
    for kind in TYPES:
        results = []
        for annotation in truth["annotations"]:
            row = {key: annotation[key] for key in ("image_id", "category_id")}
            row["score"] = round(rng.random(), 2)
            if kind == "segm":
                row["segmentation"] = _moved_mask(annotation["segmentation"], rng)
            elif kind == "keypoints":
                row["keypoints"] = [
                    v if i % 3 == 2 else v + rng.gauss(0, 1)
                    for i, v in enumerate(annotation.get("keypoints", [0] * 18))
                ]
            else:
                row["bbox"] = [v + rng.gauss(0, 1) for v in annotation["bbox"][:2]] + annotation["bbox"][2:]
            results.append(row)
        (folder / kind).mkdir()
        (folder / kind / "gt.json").write_text(json.dumps(truth))
        (folder / kind / "dt.json").write_text(json.dumps(results))
        (folder / kind / "options.json").write_text(json.dumps({"type": kind}))
    return [folder / kind for kind in TYPES]


def _moved_mask(segmentation: Any, rng: Random) -> Any:
    """Compressed run lengths of a mask, shifted by a few pixels."""
    from pycocotools import mask as codec

    rle = segmentation if isinstance(segmentation, dict) else codec.merge(codec.frPyObjects(segmentation, 48, 64))
    mask = np.roll(codec.decode(rle), (rng.randrange(3), rng.randrange(3)), (0, 1))
    encoded = codec.encode(np.asfortranarray(mask))
    return {"size": [48, 64], "counts": encoded["counts"].decode()}


def mutate(rng: Random, folder: Path) -> None:
    which = rng.choice(("dt", "dt", "gt", "gt", "both"))
    if which != "gt":
        mutate_json(rng, folder / "dt.json", RESULT_CHANGES)
    if which != "dt":
        mutate_json(rng, folder / "gt.json", FILE_CHANGES + DETECTION_CHANGES)
    if rng.random() < 0.1:
        (folder / "options.json").write_text(json.dumps({"type": rng.choice(TYPES)}))


def run(folder: Path) -> None:
    kind = json.loads((folder / "options.json").read_text())["type"]
    gt, dt = folder / "gt.json", folder / "dt.json"
    results: dict[str, dict[str, float]] = {}
    errors: dict[str, UserError] = {}
    for backend in ("fast", "pycocotools"):
        try:
            results[backend] = evaluate_coco(gt, dt, kind, backend=backend, per_class=True)  # type: ignore[arg-type]
        except UserError as error:
            errors[backend] = error
    if results and errors:
        raise WrongResult(f"only one backend refuses the files: {errors}")
    if errors:
        raise errors["fast"]
    require(same(*results.values()), f"the backends differ: {results}")
    if is_standard(gt, dt, kind):
        reference = raw_metrics(gt, dt, kind)
        metrics = list(results["fast"].values())[: len(reference or ())]
        require(reference is None or metrics == reference, f"pycocotools: {reference}, but visionkit: {metrics}")


def command(folder: Path) -> list[str]:
    kind = json.loads((folder / "options.json").read_text())["type"]
    return ["coco-eval", "--gt", str(folder / "gt.json"), "--dt", str(folder / "dt.json"), "--type", kind]


def raw_metrics(gt: Path, dt: Path, kind: str) -> list[float] | None:
    """The metrics of pycocotools, used as its documentation says, or ``None`` where it cannot work with the files."""

    def work() -> tuple[str, str]:
        truth = COCO(str(gt))
        run = COCOeval(truth, truth.loadRes(str(dt)), kind)
        run.params.kpt_oks_sigmas = np.full(6, SIGMA)
        run.evaluate()
        run.accumulate()
        run.summarize()
        return "accepted", json.dumps(run.stats.tolist())

    outcome = in_fork(work)
    return json.loads(outcome.detail) if outcome.kind == "accepted" else None


class Image(msgspec.Struct):
    id: int
    height: Annotated[int, Meta(gt=0)]
    width: Annotated[int, Meta(gt=0)]


class Category(msgspec.Struct):
    id: int
    name: str
    keypoints: list[str] | msgspec.UnsetType = msgspec.UNSET
    sigmas: msgspec.UnsetType = msgspec.UNSET


class Masks(msgspec.Struct):
    size: Annotated[list[int], Meta(min_length=2, max_length=2)]
    counts: str | list[int]


Numbers = list[float]
Box = Annotated[Numbers, Meta(min_length=4, max_length=4)]


class Annotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    area: float
    bbox: Box
    iscrowd: Literal[0, 1]
    segmentation: Masks | list[Annotated[Numbers, Meta(min_length=6)]]
    num_keypoints: int
    keypoints: Annotated[Numbers, Meta(min_length=18, max_length=18)] | msgspec.UnsetType = msgspec.UNSET


class Truth(msgspec.Struct):
    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class Result(msgspec.Struct):
    image_id: int
    category_id: int
    score: float
    bbox: Box | msgspec.UnsetType = msgspec.UNSET
    segmentation: Masks | msgspec.UnsetType = msgspec.UNSET
    keypoints: Numbers | msgspec.UnsetType = msgspec.UNSET


def is_standard(gt: Path, dt: Path, kind: str) -> bool:
    """Whether two files hold what COCO's documentation describes, so that pycocotools defines the right numbers."""
    try:
        truth = msgspec.json.decode(gt.read_bytes(), type=Truth)
        results = msgspec.json.decode(dt.read_bytes(), type=list[Result])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    key = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    given = [{name for name in ("bbox", "segmentation", "keypoints") if getattr(row, name) is not msgspec.UNSET}
             for row in results]  # fmt: skip
    unique = all(
        len({row.id for row in rows}) == len(rows) for rows in (truth.images, truth.categories, truth.annotations)
    )
    return unique and all(keys == {key} for keys in given)


def _results(rng: Random, data: Any) -> None:
    """One field of a detection that has an unusual value, or that only some detections have."""
    row = rng.choice(data)
    key = rng.choice(("score", "score", "image_id", "category_id", "bbox", "segmentation", "keypoints", "area", "id"))
    form = rng.randrange(5)
    if form == 0:
        row[key] = rng.choice((*NUMBERS, *STRINGS, None, True, [], {}))
    elif form == 1:
        kind = rng.choice((str, float, lambda v: -v, lambda v: v + 1000, lambda v: [v], lambda v: 0.5))
        for other in data:
            other[key] = kind(other[key])
    elif form == 2:
        for other in data[rng.randrange(len(data)) :]:
            other.pop(key, None)
    elif form == 3:
        row[key] = rng.choice(data)[key]
    else:
        row["bbox"] = rng.choice(
            ([1, 2, 3, 4], [1, 2, 0, 0], [1, 2, -3, 4], [], [1, 2], None, [1, 2, 3, "4"], [0.1] * 4)
        )


def _geometry(rng: Random, data: Any) -> None:
    """The changes that annotations get, in a result."""
    rng.choice(DETECTION_CHANGES)(rng, {"annotations": data})


def _number_of_results(rng: Random, data: Any) -> None:
    """No results, one result very often, equal scores, or results that are wrapped as annotations are."""
    form = rng.randrange(4)
    if form == 0:
        data.clear()
    elif form == 1:
        data += [dict(rng.choice(data)) for _ in range(rng.choice((1, 120, 300)))]
    elif form == 2:
        for row in data:
            row["score"] = 0.5
    else:
        data[:] = rng.choice(([[*data]], [{"annotations": [*data]}], [[row] for row in data]))


RESULT_CHANGES = (_results, _results, _geometry, _geometry, _number_of_results)
