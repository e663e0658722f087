"""Weights of CenterNet, CornerNet and their kin: imported, they say what the authors' own models say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import reference_shapes as of
from tests.formula_weights import blocks_image, formula_weights
from visionkit.config import parse_pipeline
from visionkit.model import MultiTaskModel
from visionkit.model.build import build_model
from visionkit.model.importing import Importer
from visionkit.model.run import load_state
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, MixedBatch
from visionkit_points import centernet_weights, corner_weights
from visionkit_points.centernet import decode_centres
from visionkit_points.centernet_pose import decode_poses
from visionkit_points.corners import decode_points

DATA = Path(__file__).parents[1] / "data"
IMPORTERS: dict[str, type[Importer]] = {
    "centernet_resnet18": centernet_weights.CenterNetResNet,
    "centernet_resdcn18": centernet_weights.CenterNetResNet,
    "centernet_dla34": centernet_weights.CenterNetDLA34,
    "centernet_dla34_pose": centernet_weights.CenterNetPoseDLA34,
    "cornernet_hg104": corner_weights.CornerNet,
    "centernet_triplet52": corner_weights.Triplet,
}


def arrays_of(name: str) -> dict[str, Tensor]:
    with np.load(DATA / name / "io.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]).float() for key in arrays.files}


def model_of(importer: type[Importer], state: Mapping[str, Tensor]) -> MultiTaskModel:
    text, labels = importer().describe(state)
    return build_model(parse_pipeline(text, "imported"), PluginManager(), labels)


def imported(name: str) -> MultiTaskModel:
    """The model of a fixture, with its weights."""
    state = formula_weights(DATA / name / "keys.json")
    model = model_of(IMPORTERS[name], state)
    load_state(model, IMPORTERS[name]().convert(state), name)
    return model.eval()


def record(model: nn.Module, wanted: Mapping[str, str]) -> dict[str, Tensor]:
    """Where the outputs of modules will be found once it has run; of several, the last one."""
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        return lambda module, args, out: seen.__setitem__(key, out if isinstance(out, Tensor) else out[-1])

    for key, path in wanted.items():
        model.get_submodule(path).register_forward_hook(keep(key))
    return seen


@torch.no_grad()
def say(model: MultiTaskModel, side: int) -> tuple[dict[str, Tensor], Any]:
    """Features and output of the only head for the picture."""
    (head,) = model.order
    batch = MixedBatch(blocks_image(side, side)[None], (ImageInfo(0, "", (side, side), (side, side)),), {})
    batch = batch.normalised(model.mean, model.std, channels_last=False)
    features = model.features(batch.images)
    return dict(features), model.run_heads(model.branches(features), batch, {head: [0]})[head]


def near(own: Tensor, want: Tensor) -> None:
    """Within a thousandth of the scale; what is kept in float16 has half of that error by itself."""
    scale = float(want.abs().max())
    torch.testing.assert_close(own, want, atol=1e-3 * scale, rtol=1e-3)


def near_all(
    seen: Mapping[str, Tensor], expected: Mapping[str, Tensor], thinned: Mapping[str, tuple[int, int]]
) -> None:
    """Maps of one image, each thinned out by channel, and by row and column."""
    for name, (channels, cells) in thinned.items():
        near(seen[name][0, ::channels, ::cells, ::cells], expected[name])


def near_rows(rows: Tensor, expected: Tensor) -> None:
    """Detections, but for those that change places or drop out where scores are nearly equal."""
    distance = (rows[:, None] - expected).abs().amax(2)
    assert (distance.amin(0) < 0.02).float().mean() >= 0.97


CENTERNET = {"head_hm": (40, 1), "head_wh": (1, 2), "head_reg": (1, 2)}


def check_centernet(output: Any, expected: dict[str, Tensor]) -> None:
    maps = output.stacks[0]
    seen = {"head_hm": maps["heat"], "head_wh": maps["size"], "head_reg": maps["offset"]}
    near_all(seen, expected, CENTERNET)
    boxes, scores, labels = decode_centres(maps, 100)
    near_rows(torch.cat((boxes, scores[..., None], labels[..., None]), 2)[0], expected["dets"])


@pytest.mark.parametrize("name", ["centernet_resnet18", "centernet_resdcn18"])
def test_centernet_on_resnet_18_is_that_of_the_authors(name: str) -> None:
    model, expected = imported(name), arrays_of(name)
    seen = record(model, {f"layer{i}": f"backbone.body.layer{i}" for i in range(1, 5)})
    features, output = say(model, 256)
    thinned = {"layer1": (32, 4), "layer2": (32, 2), "layer3": (64, 1), "layer4": (64, 1), "deconv": (32, 2)}
    near_all({**seen, "deconv": features["p2"]}, expected, {k: v for k, v in thinned.items() if k in expected})
    check_centernet(output, expected)


def test_centernet_on_dla_34_is_that_of_the_authors() -> None:
    model, expected = imported("centernet_dla34"), arrays_of("centernet_dla34")
    stages = {f"dla_up{i}": f"neck.stages.{2 - i}" for i in range(3)}
    seen = record(model, {**{f"base{i}": f"backbone.body.level{i}" for i in range(2, 6)}, **stages})
    _, output = say(model, 256)
    near_all(seen, expected, {"base2": (16, 4), "base3": (32, 2), "base4": (64, 1), "base5": (128, 1)})
    near_all(seen, expected, {"dla_up0": (16, 2), "dla_up1": (32, 1), "dla_up2": (64, 1)})
    near(seen["base5"][0, ::128], expected["dla_up3"])
    check_centernet(output, expected)


def test_centernets_poses_are_those_of_the_authors() -> None:
    expected = arrays_of("centernet_dla34_pose")
    _, output = say(imported("centernet_dla34_pose"), 256)
    maps = output.stacks[0]
    seen = {"head_hm": maps["heat"], "head_wh": maps["size"], "head_reg": maps["offset"], "head_hps": maps["joints"]}
    seen |= {"head_hm_hp": maps["joint_heat"], "head_hp_offset": maps["joint_offset"]}
    near_all(seen, expected, {"head_hm": (1, 2), "head_wh": (1, 2), "head_reg": (1, 2), "head_hps": (8, 2)})
    near_all(seen, expected, {"head_hm_hp": (8, 2), "head_hp_offset": (1, 2)})
    boxes, scores, labels, keypoints = decode_poses(maps, 30)
    points = keypoints[0, :, :, :2].flatten(1)
    near_rows(torch.cat((boxes[0], scores[0, :, None], points, labels[0, :, None]), 1), expected["dets"])


def check_points(model: MultiTaskModel, kinds: Mapping[str, str], stages: Mapping[str, str], name: str) -> None:
    """Stages, pooled features and maps of CornerNet and of the triplet."""
    expected = arrays_of(name)
    last = len(model.head("boxes").levels) - 1
    pools = {f"{kind}_pool": f"heads.boxes.{ours}.{last}.pool" for kind, ours in kinds.items()}
    seen = record(model, {**stages, **pools})
    _, output = say(model, 255)
    near_all(seen, expected, dict.fromkeys([*stages, *pools], (32, 4)))
    maps = output.stacks[-1]
    for kind in kinds:
        near_all({f"{kind}_heat": maps[f"{kind}_heat"]}, expected, {f"{kind}_heat": (40, 2)})
        near_all({f"{kind}_regr": maps[f"{kind}_offset"]}, expected, {f"{kind}_regr": (1, 2)})
        if kind != "ct":
            near_all({f"{kind}_tag": maps[f"{kind}_tag"]}, expected, {f"{kind}_tag": (1, 2)})
    if "centers" in expected:
        points, scores, labels, _ = decode_points(maps, "ct", 70, 3)
        near_rows(torch.cat((points, labels[..., None], scores[..., None]), 2)[0], expected["centers"])


def test_cornernet_is_that_of_the_authors() -> None:
    stages = {"pre": "backbone.stem", "kp0": "backbone.stacks.0", "inter1": "backbone.between.0"}
    stages |= {"kp1": "backbone.stacks.1", "cnv1": "backbone.features.1"}
    kinds = {"tl": "top_left", "br": "bottom_right"}
    check_points(imported("cornernet_hg104"), kinds, stages, "cornernet_hg104")


def test_the_triplet_is_that_of_the_authors() -> None:
    stages = {"pre": "backbone.stem", "kp0": "backbone.stacks.0", "cnv0": "backbone.features.0"}
    kinds = {"tl": "top_left", "br": "bottom_right", "ct": "centre"}
    check_points(imported("centernet_triplet52"), kinds, stages, "centernet_triplet52")


UNUSED_IN_DLA = (64 * 128 + 2 * 128) + (128 * 256 + 2 * 256)
"""Two projections that the authors' DLA has and never uses; timm leaves them out."""


def shapes_of(name: str) -> of.Shapes:
    return {entry["name"]: tuple(entry["shape"]) for entry in json.loads((DATA / name / "keys.json").read_text())}


HOURGLASS = (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4)
POINTS = ("tl", "br", "ct")


@pytest.mark.parametrize(
    ("importer", "shapes", "count"),
    [
        (centernet_weights.CenterNetResNet, shapes_of("centernet_resnet18"), 15_820_372),
        (
            centernet_weights.CenterNetResNet,
            of.centernet_resnet((3, 4, 23, 3), 80, (256, 256, 256), deformable=False, basic=False),
            53_435_476,
        ),
        (centernet_weights.CenterNetResNet, shapes_of("centernet_resdcn18"), 14_437_349),
        (centernet_weights.CenterNetDLA34, shapes_of("centernet_dla34"), 19_675_892 - UNUSED_IN_DLA),
        (centernet_weights.CenterNetPoseDLA34, shapes_of("centernet_dla34_pose"), 20_112_346 - UNUSED_IN_DLA),
        (corner_weights.CenterNetHourglass, of.centernet_hourglass(2, *HOURGLASS, 80), 191_284_008),
        (corner_weights.CornerNet, shapes_of("cornernet_hg104"), 201_035_212),
        (corner_weights.Triplet, of.corner_hourglass(2, *HOURGLASS) | of.corner_points(2, 80, POINTS), 210_062_960),
        (corner_weights.Triplet, shapes_of("centernet_triplet52"), 104_844_152),
    ],
)
def test_parameter_counts(importer: type[Importer], shapes: of.Shapes, count: int) -> None:
    with torch.device("meta"):
        model = model_of(importer, {name: torch.empty(shape) for name, shape in shapes.items()})
    assert sum(p.numel() for p in model.parameters()) == count
