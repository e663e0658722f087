"""Pictures: what is painted lies where it should, and nothing else changes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from visionkit import rle
from visionkit.data.coco import CocoSource
from visionkit.data.images import as_hwc
from visionkit.draw import (
    class_colors,
    comparison,
    draw_instances,
    draw_prediction,
    draw_semantic,
    legend,
    palette,
    sheet,
)
from visionkit.draw.instances import SIDES, sides_of
from visionkit.draw.palette import shade, text_color
from visionkit.draw.text import Words
from visionkit.types import (
    BoxPrediction,
    InstanceTarget,
    KeypointPrediction,
    LabelSet,
    MaskPrediction,
    Prediction,
    SemanticPrediction,
    SemanticTarget,
    Target,
)

LABELS = LabelSet(("cat", "dog"), keypoints=("nose", "tail"), skeleton=((0, 1),))


def gray(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def changed(image: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return (image != picture).any(2)


def ellipse(height: int = 120, width: int = 160) -> np.ndarray:
    return cv2.ellipse(np.zeros((height, width), np.uint8), (80, 70), (40, 25), 20, 0, 360, 1, -1)


def box_of(mask: np.ndarray) -> list[float]:
    x, y, w, h = cv2.boundingRect(mask)
    return [x, y, x + w, y + h]


def target(*, crowd: bool = False, mask: np.ndarray | None = None, points: list | None = None) -> InstanceTarget:
    mask = ellipse() if mask is None else mask
    return InstanceTarget(
        boxes=torch.tensor([box_of(mask)], dtype=torch.float32),
        labels=torch.tensor([0]),
        crowd=torch.tensor([crowd]),
        areas=torch.tensor([float(mask.sum())]),
        ids=torch.tensor([1]),
        masks=torch.from_numpy(mask)[None],
        keypoints=None if points is None else torch.tensor([points], dtype=torch.float32),
    )


def mask_prediction(score: float = 0.9) -> MaskPrediction:
    box = torch.tensor([box_of(ellipse())], dtype=torch.float32)
    return MaskPrediction(box, torch.tensor([score]), torch.tensor([0]), [rle.encode(ellipse())])


@pytest.mark.parametrize("scale", [1, 3])
def test_a_mask_is_painted_inside_and_nothing_outside_its_box_but_the_name(scale: int) -> None:
    image = gray()
    picture = draw_instances(image, mask_prediction(), LABELS, scale=scale)
    assert picture.shape == (120 * scale, 160 * scale, 3)
    assert picture.dtype == np.uint8
    paint = changed(np.kron(image, np.ones((scale, scale, 1), np.uint8)), picture)
    assert paint[70 * scale, 80 * scale]
    x0, y0, x1, y1 = (int(v) * scale for v in box_of(ellipse()))
    outside = paint.copy()
    outside[y0:y1, x0:x1] = False
    rows = np.nonzero(outside)[0]
    assert len(rows) < 0.1 * paint.size
    assert rows.max() < y0  # the name, over the box
    corner = np.zeros_like(paint)
    corner[y0 + 3 * scale : y0 + 8 * scale, x1 - 8 * scale : x1 - 3 * scale] = True  # in the box, not in the mask
    assert not paint[corner].any()


def test_the_image_that_is_given_stays_as_it_was() -> None:
    image = gray()
    draw_prediction(
        image, {"m": mask_prediction(), "s": SemanticTarget(torch.ones(120, 160).long())}, {"m": LABELS, "s": LABELS}
    )
    assert (image == 100).all()


def test_predictions_below_the_score_are_not_drawn() -> None:
    assert not changed(gray(), draw_instances(gray(), mask_prediction(0.4), LABELS)).any()
    assert changed(gray(), draw_instances(gray(), mask_prediction(0.4), LABELS, min_score=0.3)).any()


def test_a_kind_of_prediction_says_from_which_score_it_is_drawn() -> None:
    class Unsure(MaskPrediction):
        drawn_from = 0.2

    found = mask_prediction(0.4)
    unsure = Unsure(found.boxes, found.scores, found.labels, found.rles)
    assert changed(gray(), draw_instances(gray(), unsure, LABELS)).any()
    assert not changed(gray(), draw_instances(gray(), unsure, LABELS, min_score=0.5)).any()


@pytest.mark.parametrize(
    "nothing",
    [
        BoxPrediction(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()),
        MaskPrediction(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()),
        KeypointPrediction(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 2, 3)),
        InstanceTarget.empty((120, 160), 2, masks=True),
    ],
    ids=lambda nothing: type(nothing).__name__,
)
def test_nothing_found_leaves_the_image(nothing: BoxPrediction | InstanceTarget) -> None:
    assert not changed(gray(), draw_instances(gray(), nothing, LABELS)).any()


def test_boxes_and_points_far_outside_and_empty_masks_are_no_trouble() -> None:
    boxes = torch.tensor([[-1e9, -50.0, 1e9, 90.0], [10.0, 10.0, 10.0, 10.0]])
    points = torch.tensor([[[1e12, 5.0, 1.0], [-1e12, 9.0, 1.0]]] * 2)
    many = KeypointPrediction(boxes, torch.ones(2), torch.zeros(2).long(), points)
    assert draw_instances(gray(), many, LABELS).shape == (120, 160, 3)
    empty = MaskPrediction(boxes[1:], torch.ones(1), torch.zeros(1).long(), [rle.empty(120, 160)])
    assert draw_instances(gray(), empty, LABELS).shape == (120, 160, 3)


def test_a_crowd_is_hatched_and_its_box_dashed() -> None:
    one = draw_instances(gray(), target(), LABELS)
    crowd = draw_instances(gray(), target(crowd=True), LABELS)
    inside = (slice(60, 80), slice(70, 95))
    assert np.ptp(one[inside].astype(int), axis=(0, 1)).max() == 0
    assert np.ptp(crowd[inside].astype(int), axis=(0, 1)).max() > 30
    x0, _, _, y1 = (int(v) for v in box_of(ellipse()))
    edge = changed(gray(), crowd)[y1 - 1, x0 : x0 + 20]  # the bottom edge, left of where the mask touches it
    assert edge.any()
    assert not edge.all()
    assert changed(gray(), one)[y1 - 1, x0 : x0 + 20].all()


def test_keypoints_visible_filled_hidden_hollow_unlabelled_not_at_all() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[40:360, 40:360] = 1
    blank = LabelSet(("cat",), keypoints=("a", "b", "c"))
    points = target(mask=mask, points=[[100, 200, 2], [200, 200, 1], [300, 200, 0]])
    points.masks = None
    picture = draw_instances(gray(400, 400), points, blank)
    assert tuple(picture[199, 99]) == palette(thing=True)[0]
    assert tuple(picture[199, 199]) == (255, 255, 255)
    assert palette(thing=True)[1] in {tuple(p) for p in picture[190:210, 190:210].reshape(-1, 3).tolist()}
    assert not changed(gray(400, 400), picture)[180:220, 280:320].any()


def test_limbs_join_only_keypoints_that_are_there() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[40:360, 40:360] = 1
    for state, joined in ((2, True), (0, False)):
        points = target(mask=mask, points=[[100, 200, 2], [300, 200, state]])
        points.masks = None
        paint = changed(gray(400, 400), draw_instances(gray(400, 400), points, LABELS))
        assert paint[199, 120:280].all() == joined
        assert paint[199, 120:280].any() == joined


PAIRED = LabelSet(
    ("cat",),
    keypoints=("nose", "left_paw", "right_paw", "left_ear"),
    skeleton=((0, 1), (0, 2), (1, 2)),
    swaps=((1, 2),),
)


def test_limbs_have_the_colour_of_their_side() -> None:
    assert sides_of(PAIRED) == ("", "left", "right", "")  # an ear without a mirror image has no side
    mask = np.zeros((400, 400), np.uint8)
    mask[40:360, 40:360] = 1
    points = target(mask=mask, points=[[200, 100, 2], [100, 300, 2], [300, 300, 2], [0, 0, 0]])
    points.masks = None
    picture = draw_instances(gray(400, 400), points, PAIRED)
    assert tuple(picture[200, 150]) == SIDES["left"]
    assert tuple(picture[200, 250]) == SIDES["right"]
    assert tuple(picture[299, 200]) == shade(class_colors([PAIRED])["cat"], 0, 30.0)  # from side to side: the middle
    seen = comparison(gray(400, 400), {"k": points}, {}, {"k": PAIRED}).reshape(-1, 3)
    assert all((seen == color).all(1).any() for color in SIDES.values())  # and the legend says so


def test_on_a_small_object_the_limbs_stay_in_sight() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[200:230, 200:230] = 1
    points = target(mask=mask, points=[[215, 203, 2], [203, 227, 1], [227, 227, 2], [0, 0, 0]])
    points.masks = None
    patch = draw_instances(gray(400, 400), points, PAIRED)[200:230, 200:230].reshape(-1, 3)
    for color in SIDES.values():
        assert (np.abs(patch.astype(int) - color).sum(1) < 60).sum() >= 10
    assert (patch == gray()[0, 0]).all(1).mean() > 0.3  # the ground is not covered


def test_keypoints_below_their_score_are_not_drawn() -> None:
    points = torch.tensor([[[100.0, 200.0, 0.9], [300.0, 200.0, 0.1]]])
    found = KeypointPrediction(torch.tensor([[40.0, 40, 360, 360]]), torch.ones(1), torch.zeros(1).long(), points)
    paint = changed(gray(400, 400), draw_instances(gray(400, 400), found, LABELS, min_keypoint_score=0.5))
    assert paint[199, 99]
    assert not paint[199, 299]


def test_names_in_any_script_are_drawn() -> None:
    names = LabelSet(("chien 犬", "Ärger", "кот", "كلب", "🦊", "a\nb"))
    boxes = torch.tensor([[10.0 + 20 * i, 30.0, 30.0 + 20 * i, 60.0] for i in range(6)])
    picture = draw_instances(gray(), BoxPrediction(boxes, torch.ones(6), torch.arange(6)), names)
    assert picture.shape == (120, 160, 3)
    assert legend(class_colors([names]), 300, 13).shape[1] == 300


def test_an_older_opencv_without_outline_fonts_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    assert changed(gray(), draw_instances(gray(), target(), LABELS)).any()


def test_words_never_overlap_and_stay_inside() -> None:
    canvas = gray(200, 300)
    words = Words(canvas, 13)
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(-20, 300, (60, 2)):
        words.tag("something 0.99", (x, y, x + 40, y + 30), (0, 158, 115))
        words.name("elsewhere", (x, y))
    assert 5 < len(words.taken) < 120
    for a, b in itertools.combinations(words.taken, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(min(rect) >= 0 and rect[2] <= 300 and rect[3] <= 200 for rect in words.taken)


def test_a_word_larger_than_the_picture_is_cut() -> None:
    image = gray(20, 30)
    picture = draw_semantic(image, np.zeros((20, 30), np.uint8), LabelSet(("a very long name indeed",)))
    assert picture.shape == image.shape


def test_colors_are_fixed_by_index_and_far_apart_for_any_eye() -> None:
    few, many = (class_colors([LabelSet(tuple(f"class {i}" for i in range(n)))]) for n in (3, 80))
    assert list(few.values()) == list(many.values())[:3]
    assert len(set(many.values())) == 80
    assert not set(palette(thing=True)) & set(palette(thing=False))
    first = np.array(palette(thing=True)[:8]).astype(float)
    lightness = cv2.cvtColor((first[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lightness, 2)) > 20


def test_detectors_and_label_maps_agree_on_the_color_of_a_thing() -> None:
    detector = LabelSet(("disk", "box"))
    regions = LabelSet(("background", "grass", "disk", "box"), things=(False, False, True, True))
    assert class_colors([detector])["box"] == class_colors([regions])["box"]
    assert class_colors([regions])["background"] == (128, 128, 128)
    own = LabelSet(("a", "b"), colors=((1, 2, 3), (4, 5, 6)))
    assert class_colors([own, detector]) == {"a": (1, 2, 3), "b": (4, 5, 6), **class_colors([detector])}


def test_shades_differ_and_start_with_the_color_itself() -> None:
    shades = [shade((86, 180, 233), i, 45.0) for i in range(6)]
    assert shades[0] == (86, 180, 233)
    assert len(set(shades)) == 6
    assert text_color((255, 255, 0)) == (0, 0, 0)
    assert text_color((0, 0, 90)) == (255, 255, 255)


def test_regions_take_the_color_of_their_class_and_background_none() -> None:
    regions = LabelSet(("background", "grass", "sky"), things=(False,) * 3)
    label_map = np.zeros((120, 160), np.uint8)
    label_map[:, 80:] = 1
    picture = draw_semantic(gray(), label_map, regions, alpha=1.0)
    assert not changed(gray(), picture)[:, :79].any()
    assert tuple(picture[5, 150]) == class_colors([regions])["grass"]
    assert (picture[10:110, 80] > 200).all()  # the border


def test_ignored_pixels_are_hatched_in_grey() -> None:
    for ignored in (255, 77):  # what is no label counts for nothing either
        label_map = np.full((120, 160), ignored, np.int64)
        picture = draw_semantic(np.full((120, 160, 3), (200, 30, 30), np.uint8), label_map, LABELS).astype(int)
        assert np.ptp(picture[..., 1]) > 15


def test_all_heads_in_one_picture_and_a_shared_box_once() -> None:
    box = torch.tensor([box_of(ellipse())], dtype=torch.float32)
    one, score = torch.tensor([0]), torch.tensor([0.9])
    points = torch.tensor([[[60.0, 70.0, 1.0], [100.0, 70.0, 1.0]]])
    items: dict[str, Prediction | Target | None] = {
        "boxes": BoxPrediction(box, score, one),
        "masks": mask_prediction(),
        "keypoints": KeypointPrediction(box + 0.2, score, one, points),
        "truth": None,
    }
    sets = dict.fromkeys(items, LABELS)
    together = draw_prediction(gray(), items, sets, scale=1)
    assert (together != draw_prediction(gray(), {"masks": items["masks"]}, sets, scale=1)).any()
    del items["boxes"]
    assert (together == draw_prediction(gray(), items, sets, scale=1)).all()


def test_small_images_are_enlarged_only_in_the_composed_picture() -> None:
    image = gray(96, 128)
    regions = SemanticPrediction(torch.zeros(96, 128, dtype=torch.uint8))
    assert draw_prediction(image, {"s": regions}, {"s": LABELS}).shape == (480, 640, 3)
    assert regions.draw(image, LABELS).shape == (96, 128, 3)
    assert draw_prediction(gray(600, 800), {}, {}).shape == (600, 800, 3)


@dataclass
class Arrow(Prediction):
    """A stranger's prediction."""

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        return cv2.arrowedLine(image.copy(), (10, 10), (90, 90), (255, 0, 0), 3)


@dataclass
class Silent(Prediction):
    """One that does not say how it is drawn."""


@dataclass
class Circles(BoxPrediction):
    """A box prediction that draws itself otherwise."""

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        return np.zeros_like(image)


def test_strangers_draw_themselves() -> None:
    picture = draw_prediction(gray(), {"arrow": Arrow()}, {"arrow": LABELS}, scale=1)
    assert tuple(picture[50, 50]) == (255, 0, 0)
    circles = Circles(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert not draw_prediction(gray(), {"c": circles}, {"c": LABELS}).any()


def test_a_stranger_without_a_picture_is_said_and_the_others_are_drawn() -> None:
    with pytest.warns(UserWarning, match="Silent does not say how it is drawn"):
        picture = draw_prediction(gray(), {"s": Silent(), "m": mask_prediction()}, {"s": LABELS, "m": LABELS}, scale=1)
    assert changed(gray(), picture).any()


def test_a_sheet_holds_every_tile_as_it_is() -> None:
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 60), (50, 30), (20, 80))]
    picture = sheet(tiles, 2, ("one", "", "three"))
    for tile in tiles:
        h, w = tile.shape[:2]
        windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], (h, w))
        assert any((windows[y, x] == tile[..., 0]).all() for y, x in np.argwhere(windows[..., 0, 0] == tile[0, 0, 0]))
    with pytest.raises(ValueError, match="0 tiles"):
        sheet([], 2)


def test_comparison_shows_truth_and_says_when_there_is_none() -> None:
    labels = {"m": LABELS}
    known = comparison(gray(), {"m": target()}, {"m": mask_prediction()}, labels)
    unknown = comparison(gray(), {"m": None}, {"m": mask_prediction()}, labels)
    empty = comparison(gray(), {"m": InstanceTarget.empty((120, 160), masks=True)}, {"m": mask_prediction()}, labels)
    assert known.shape == unknown.shape == empty.shape
    assert known.dtype == np.uint8
    assert changed(known, unknown).any()
    assert changed(empty, unknown).any()
    color = class_colors([LABELS])["cat"]
    assert (known[-20:] == color).all(2).any()  # in the legend


def test_a_head_that_paints_itself_has_a_row_of_its_own() -> None:
    class Flood(Prediction):
        def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
            return np.full_like(image, 7)

    sets = {"m": LABELS, "flood": LABELS}
    alone = comparison(gray(), {"m": target()}, {"m": mask_prediction()}, sets)
    both = comparison(gray(), {"m": target(), "flood": None}, {"m": mask_prediction(), "flood": Flood()}, sets)
    height = int(changed(alone, both[: len(alone)]).any(1).argmax())
    assert height > 2 * 120  # the first row is what it was
    assert (both[height:] == 7).all(2).sum() >= 120 * 160


def test_truth_has_its_limbs_whichever_head_comes_first() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[40:360, 40:360] = 1
    both = target(mask=mask, points=[[100, 200, 2], [300, 200, 2]])
    both.masks = None
    sets = {"boxes": LabelSet(("cat", "dog")), "keypoints": LABELS}
    picture = draw_prediction(gray(400, 400), {"boxes": both, "keypoints": both}, sets, scale=1)
    assert changed(gray(400, 400), picture)[199, 120:280].all()


@pytest.mark.real_data
@pytest.mark.parametrize("file", ["instances.json", "person_keypoints.json"])
def test_real_targets_change_the_picture_where_there_are_any(real_data: Path, file: str) -> None:
    folder = real_data / "coco_instances_keypoints"
    source = CocoSource(images=str(folder / "images"), annotations=str(folder / file))
    counts = []
    for index in range(0, len(source), 5):
        sample = source.load(index, source.tasks)
        image = as_hwc(sample.image)
        picture = draw_prediction(image, sample.targets, source.labels, scale=1)
        found = sample.targets["boxes"]
        assert isinstance(found, InstanceTarget)
        assert changed(image, picture).any() == (len(found) > 0)
        counts.append(len(found))
    assert max(counts) > 5
