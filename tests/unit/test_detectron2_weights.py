"""Weights of detectron2's Mask and Keypoint R-CNN: imported, they say at every stage what detectron2 says."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from tests.formula_weights import formula_image, formula_weights
from visionkit.config import load_pipeline, parse_pipeline
from visionkit.data.base import Sample
from visionkit.data.loader import collate
from visionkit.errors import UserError
from visionkit.model import MultiTaskModel
from visionkit.model.build import build_model, placeholder_labels
from visionkit.model.detectron2 import trained
from visionkit.model.importing import Importer, build_importer, import_model
from visionkit.plugins import PluginManager
from visionkit.rle import decode
from visionkit.types import ImageInfo, MixedBatch
from visionkit_rcnn.detectron2_weights import FasterRCNN, KeypointRCNN, MaskRCNN, PanopticFPN
from visionkit_rcnn.rcnn import RCNN, Regions
from visionkit_rcnn.roi_keypoint import RoIKeypoint, peaks
from visionkit_rcnn.roi_mask import RoIMask

FIXTURE = Path(__file__).parent.parent / "data" / "detectron2_rcnn"


def read(name: str) -> dict[str, Tensor]:
    with np.load(FIXTURE / name) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def photo(model: MultiTaskModel) -> MixedBatch:
    """The reference's image; detections are scaled to one that is twice as large."""
    pixels = torch.from_numpy(formula_image(250, 333)[..., ::-1].copy()).permute(2, 0, 1)
    info = ImageInfo(0, "", (500, 666), (250, 333), (0.5, 0, 0, 0, 0.5, 0))
    return collate([Sample(pixels, info)]).normalised(model.mean, model.std, channels_last=False)


def near(own: Tensor, want: Tensor) -> None:
    """Equal to the 20,000th part of the largest number: a few times what detectron2 itself moves by."""
    torch.testing.assert_close(own, want, atol=5e-5 * float(want.abs().max()), rtol=0)


class Reference:
    """One imported model, the image, and all that comes before the boxes."""

    def __init__(self, importer: Any, state: dict[str, Tensor], folder: Path) -> None:
        torch.save({"model": state}, folder / "weights.pth")
        self.model = import_model(importer, folder / "weights.pth", PluginManager()).model
        (folder / "weights.pth").unlink()
        self.batch = photo(self.model)
        with torch.no_grad():
            self.features = self.model.features(self.batch.images)
            branches = self.model.branches(self.features)
            self.outputs = self.model.run_heads(branches, self.batch, {name: [0] for name in self.model.order})
        self.boxes, self.regions = self.model.head("boxes"), self.outputs["boxes"]
        assert isinstance(self.boxes, RCNN)
        assert isinstance(self.regions, Regions)

    @torch.no_grad()
    def predict(self, head: str) -> Any:
        batch = self.batch.view(head, [0], targets=False)
        return self.model.head(head).predict(self.outputs[head], batch)[0]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return formula_weights(FIXTURE / "keys.json")


@pytest.fixture(scope="module")
def mask(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(MaskRCNN(), weights, tmp_path_factory.mktemp("mask"))


@pytest.fixture(scope="module")
def keypoint(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    state = weights | formula_weights(FIXTURE / "keypoint_keys.json")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("roi_heads.mask_head")}
    return Reference(KeypointRCNN(), state, tmp_path_factory.mktemp("keypoint"))


@pytest.fixture(scope="module")
def said() -> dict[str, Tensor]:
    return read("io.npz")


@pytest.fixture(scope="module")
def said_of_persons() -> dict[str, Tensor]:
    return read("keypoint_io.npz")


def test_backbone_and_pyramid(mask: Reference, said: dict[str, Tensor]) -> None:
    near(mask.model.backbone(mask.batch.images)["c5"][0, ::128], said["res5"])  # type: ignore[misc]
    for level, channels, step in (("p2", 64, 4), ("p3", 64, 2), ("p4", 64, 1), ("p5", 32, 1), ("p6", 8, 1)):
        near(mask.features[level][0, ::channels, ::step, ::step], said[level])


def test_anchors_and_what_the_proposal_network_says_of_them(mask: Reference, said: dict[str, Tensor]) -> None:
    rpn = mask.regions.rpn
    near(rpn.objectness[0].view(64, 88, 3).permute(2, 0, 1)[:, ::4, ::4], said["rpn_logits_p2"])
    near(rpn.deltas[1].view(32, 44, 12).permute(2, 0, 1)[:, ::4, ::4], said["rpn_deltas_p3"])
    steps = {"p2": 422, "p3": 106, "p4": 14, "p5": 14, "p6": 14}
    for anchors, (level, step) in zip(rpn.anchors.levels, steps.items(), strict=True):
        torch.testing.assert_close(anchors[::step], said[f"anchors_{level}"], atol=1e-4, rtol=0)


def test_proposals(mask: Reference, said: dict[str, Tensor]) -> None:
    proposals = mask.boxes.rpn.propose(mask.regions.rpn, **mask.boxes.proposals)[0]
    assert len(proposals) == 1000
    found = box_iou(said["proposal_boxes"], proposals).amax(1) > 0.99
    assert found.float().mean() >= 0.95


@torch.no_grad()
def test_box_branch(mask: Reference, said: dict[str, Tensor]) -> None:
    pooled = mask.boxes.pool(mask.regions.features, [said["fixed_boxes"]])
    branch = mask.boxes.branch
    hidden = branch.fc[1](branch.fc[0](pooled.flatten(1)).relu()).relu()
    near(hidden[:, ::8], said["fixed_box_head"])
    logits, deltas = branch(pooled)
    near(logits[:, 1:], said["fixed_cls_logits"][:, :-1])
    near(logits[:, 0], said["fixed_cls_logits"][:, -1])
    near(deltas.flatten(1)[:, ::3], said["fixed_box_deltas"])


@torch.no_grad()
def test_mask_branch(mask: Reference, said: dict[str, Tensor]) -> None:
    head = mask.model.head("masks")
    assert isinstance(head, RoIMask)
    for row, classes in enumerate(said["fixed_mask_logits"]):
        box = said["fixed_boxes"][row, None]
        for want, label in zip(classes, range(0, 80, 27)):
            logits = head.mask_logits(mask.features, [box], torch.tensor([label]))[0]
            near(logits[::2, ::2], want)


def rows_of(found: Any, boxes: Tensor, classes: Tensor) -> Tensor:
    """For each reference detection, the row of the same one among ``found``, or -1."""
    iou = box_iou(boxes, found.boxes) * (classes[:, None] == found.labels)
    best, row = iou.max(1)
    return torch.where(best > 0.99, row, -1)


def test_detections_and_masks(mask: Reference, said: dict[str, Tensor]) -> None:
    boxes, masks = mask.predict("boxes"), mask.predict("masks")
    assert len(boxes.boxes) == len(said["det_boxes"]) == 100
    rows = rows_of(boxes, said["det_boxes"], said["det_classes"])
    hit = rows >= 0
    assert hit.float().mean() >= 0.95
    torch.testing.assert_close(boxes.scores[rows[hit]], said["det_scores"][hit], atol=1e-4, rtol=0)

    areas = torch.tensor([int(decode(masks.rles[row]).sum()) for row in rows[hit]])
    assert (areas - said["det_mask_area"][hit]).abs().max() <= 20
    for row, bits in zip(rows, np.unpackbits(said["det_masks_packed"].numpy(), axis=1)):
        own = decode(masks.rles[row])
        assert (own != bits[: own.size].reshape(own.shape)).sum() <= 4


@torch.no_grad()
def test_keypoint_branch(keypoint: Reference, said: dict[str, Tensor], said_of_persons: dict[str, Tensor]) -> None:
    boxes = said["fixed_boxes"]
    logits, deltas = keypoint.boxes.branch(keypoint.boxes.pool(keypoint.regions.features, [boxes]))
    near(logits.roll(-1, 1), said_of_persons["fixed_cls_logits"])
    near(deltas.flatten(1), said_of_persons["fixed_box_deltas"])
    head = keypoint.model.head("keypoints")
    assert isinstance(head, RoIKeypoint)
    heatmaps = head.heatmaps(keypoint.features, [boxes])
    near(heatmaps[0, ::4, ::2, ::2], said_of_persons["fixed_keypoint_logits"])
    points, values = peaks(heatmaps, boxes)
    near(points, said_of_persons["fixed_keypoints"][..., :2])
    near(values, said_of_persons["fixed_keypoints"][..., 2])
    near(head.scores_of(values, heatmaps), said_of_persons["fixed_keypoints"][..., 3])


def test_detections_and_keypoints(keypoint: Reference, said_of_persons: dict[str, Tensor]) -> None:
    keypoint.boxes.max_detections = 12  # the branch costs 3.5 billion multiplications a box
    found = keypoint.predict("keypoints")
    rows = rows_of(found, said_of_persons["det_boxes"], torch.zeros(12, dtype=torch.int64))
    assert (rows >= 0).all()
    torch.testing.assert_close(found.scores[rows], said_of_persons["det_scores"], atol=1e-4, rtol=0)
    own, want = found.keypoints[rows], said_of_persons["det_keypoints"]
    torch.testing.assert_close(own[..., :2], want[..., :2], atol=0.01, rtol=0)
    torch.testing.assert_close(own[..., 2], want[..., 2], atol=1e-4, rtol=0)


def theirs(*files: str, depth: int = 50) -> dict[str, Tensor]:
    """A state dict of detectron2 on the meta device: names and shapes. Deeper ones have more blocks."""
    entries = [entry for file in files for entry in json.loads((FIXTURE / file).read_text())]
    state = {entry["name"]: torch.empty(entry["shape"], device="meta") for entry in entries}
    for block in range(6, {50: 6, 101: 23}[depth]):
        state |= {k.replace(".res4.5.", f".res4.{block}."): v for k, v in state.items() if ".res4.5." in k}
    return state


def built(importer: Importer, state: dict[str, Tensor]) -> MultiTaskModel:
    """The model that the state describes, without its weights; every tensor fits."""
    text, labels = importer.describe(state)
    with torch.device("meta"):
        model = build_model(parse_pipeline(text, "imported"), PluginManager(), labels)
    converted = importer.convert(state)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    return model


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("faster_rcnn_R_50_FPN_3x", 41_699_936),
        ("mask_rcnn_R_50_FPN_3x", 44_343_216),
        ("mask_rcnn_R_101_FPN_3x", 63_283_120),
        ("keypoint_rcnn_R_50_FPN_3x", 59_133_158),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    keypoints = name.startswith("keypoint")
    state = theirs(
        *(["keys.json", "keypoint_keys.json"] if keypoints else ["keys.json"]), depth=101 if "101" in name else 50
    )
    if not name.startswith("mask"):
        state = {k: v for k, v in state.items() if not k.startswith("roi_heads.mask_head")}
    model = built(build_importer(PluginManager(), f"detectron2/{name}"), state)
    assert sum(p.numel() for p in model.parameters()) == parameters
    if "101" not in name:
        shipped = load_pipeline(name.lower().removesuffix("_3x").replace("_r_", "_r") + "_coco")
        with torch.device("meta"):
            own = build_model(shipped, PluginManager(), placeholder_labels(shipped, PluginManager()))
        assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def changed(state: dict[str, Tensor], **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """``state`` with other shapes; ``__`` stands for a dot."""
    new = {name.replace("__", "."): torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert new.keys() <= state.keys()
    return state | new


BOXES_OF_3 = {
    "roi_heads__box_predictor__cls_score__weight": (4, 1024),
    "roi_heads__box_predictor__cls_score__bias": (4,),
    "roi_heads__box_predictor__bbox_pred__weight": (12, 1024),
    "roi_heads__box_predictor__bbox_pred__bias": (12,),
}


def test_other_numbers_of_classes_and_layers() -> None:
    masks = {"roi_heads__mask_head__predictor__weight": (3, 256, 1, 1), "roi_heads__mask_head__predictor__bias": (3,)}
    state = changed(theirs("keys.json", depth=101), **BOXES_OF_3, **masks)
    state = {name: tensor for name, tensor in state.items() if "mask_fcn4" not in name}
    model = built(MaskRCNN(), state)
    assert model.head("masks").labels.names == ("class 0", "class 1", "class 2")
    assert len(model.head("masks").conv) == 3

    agnostic = dict.fromkeys(("weight", "bias"), (4,)) | {"weight": (4, 1024)}
    state = changed(
        theirs("keys.json"),
        **{f"roi_heads__box_predictor__bbox_pred__{name}": shape for name, shape in agnostic.items()},
        roi_heads__mask_head__predictor__weight=(1, 256, 1, 1),
        roi_heads__mask_head__predictor__bias=(1,),
    )
    built(MaskRCNN(), state)


def test_other_numbers_of_keypoints() -> None:
    persons = {key: (2, *shape[1:]) if "cls" in key else (4, *shape[1:]) for key, shape in BOXES_OF_3.items()}
    low = "roi_heads__keypoint_head__score_lowres__"
    state = theirs("keys.json", "keypoint_keys.json")
    state = {name: tensor for name, tensor in state.items() if "mask_head" not in name}
    state = changed(state, **persons, **{f"{low}weight": (512, 5, 4, 4), f"{low}bias": (5,)})
    model = built(KeypointRCNN(), state)
    assert model.head("keypoints").labels.keypoints == tuple(f"keypoint {i}" for i in range(5))


def test_other_numbers_of_things_and_stuff() -> None:
    masks = {"roi_heads__mask_head__predictor__weight": (3, 256, 1, 1), "roi_heads__mask_head__predictor__bias": (3,)}
    stuff = {"sem_seg_head__predictor__weight": (5, 128, 1, 1), "sem_seg_head__predictor__bias": (5,)}
    state = changed(theirs("keys.json", "panoptic_keys.json"), **BOXES_OF_3, **masks, **stuff)
    model = built(PanopticFPN(), state)
    assert model.head("semantic").labels.names == ("things", "stuff 1", "stuff 2", "stuff 3", "stuff 4")
    assert sum(model.head("panoptic").labels.things) == 3


def test_several_sizes_of_anchors_change_their_order() -> None:
    rpn = "proposal_generator__rpn_head__"
    state = changed(
        {name: tensor for name, tensor in theirs("keys.json").items() if "mask_head" not in name},
        **{f"{rpn}objectness_logits__weight": (6, 256, 1, 1), f"{rpn}objectness_logits__bias": (6,)},
        **{f"{rpn}anchor_deltas__weight": (24, 256, 1, 1), f"{rpn}anchor_deltas__bias": (24,)},
    )
    with pytest.raises(UserError, match="6 anchors at each cell of 5 levels: add --set anchor_sizes="):
        FasterRCNN().describe(state)
    importer = FasterRCNN(anchor_sizes=((8, 16),) * 5)
    model = built(importer, state)
    state["proposal_generator.rpn_head.objectness_logits.bias"] = torch.tensor([0, 1, 2, 10, 11, 12.0])
    ours = importer.convert(state)["heads.boxes.rpn.objectness.bias"]
    # They count the ratios of the first size, then those of the second; the anchors here are ordered like this:
    (anchors, *_) = model.head("boxes").rpn.make_anchors([(1, 1)] * 5, (64, 64), torch.device("cpu")).levels
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    size = (width * height).sqrt().round().tolist()
    ratio = (height / width).log2().round().tolist()
    assert [10 * [8, 16].index(s) + [-1, 0, 1].index(r) for s, r in zip(size, ratio)] == ours.tolist()


def test_files_of_the_model_zoo_are_read(weights: dict[str, Tensor], tmp_path: Path) -> None:
    content = {"model": {k: v.numpy() for k, v in weights.items()}, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))
    model = import_model(MaskRCNN(), tmp_path / "model_final.pkl", PluginManager()).model
    name = "roi_heads.mask_head.deconv.weight"
    assert torch.equal(model.head("masks").upsample.weight, weights[name])


def test_buffers_that_are_computed_anew_are_left_out_and_strangers_are_named() -> None:
    state = {"pixel_mean": torch.zeros(3), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    assert trained(state) == {}
    with pytest.raises(UserError, match=r"another model: roi_heads\.mask_head\.mask_fcn1\.weight"):
        FasterRCNN().convert(theirs("keys.json"))


@pytest.fixture(scope="module")
def panoptic(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    state = weights | formula_weights(FIXTURE / "panoptic_keys.json")
    return Reference(PanopticFPN(), state, tmp_path_factory.mktemp("panoptic"))


def test_panoptic_fpn(panoptic: Reference) -> None:
    said = read("panoptic_io.npz")
    logits = panoptic.outputs["semantic"].logits
    near(logits[0, ::6, ::4, ::4], said["sem_logits_quarter"])
    # They resample twice, to the input and from there to the original image; we do so once. Their way gives their map,
    # and ours differs from it along borders alone.
    twice = F.interpolate(logits, scale_factor=4, mode="bilinear")[:, :, :250, :333]
    twice = F.interpolate(twice, (500, 666), mode="bilinear").argmax(1)[0, ::3, ::3]
    assert (twice == said["sem_seg_argmax"]).float().mean() > 0.9999
    assert (panoptic.predict("semantic").labels[::3, ::3] == said["sem_seg_argmax"]).float().mean() > 0.995


def test_panoptic_fpn_merges_the_same_segments(panoptic: Reference) -> None:
    found, want = panoptic.predict("panoptic"), json.loads((FIXTURE / "panoptic_segments.json").read_text())
    same = found.segments[::3, ::3] == read("panoptic_io.npz")["panoptic_map"]
    assert same.float().mean() > 0.995
    # Stuff is counted from the one class of all things there, and from the last of the things here.
    theirs = [s["category_id"] if s["isthing"] else s["category_id"] + 79 for s in want]
    assert found.labels.tolist() == theirs
    scores = [s["score"] for s in want if s["isthing"]]
    torch.testing.assert_close(found.scores[: len(scores)], torch.tensor(scores), atol=1e-4, rtol=0)
