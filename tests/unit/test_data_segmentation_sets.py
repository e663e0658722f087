"""The folders of VOC, Cityscapes, ADE20K and CamVid, written small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from visionkit.data.base import Source
from visionkit.data.label_sets import label_set
from visionkit.data.segmentation_classes import ADE20K, CAMVID, CAMVID_COLORS, CITYSCAPES, VOC
from visionkit.data.segmentation_sets import Ade20kSource, CamvidSource, CityscapesSource, VocSource
from visionkit.errors import DataError
from visionkit.plugins import PluginManager
from visionkit.types import IGNORE, SemanticTarget


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return path


def image(path: Path, size: tuple[int, int] = (2, 3)) -> Path:
    return write(path, np.full((*size, 3), 90, np.uint8))


def labels_of(source: Source, index: int = 0) -> list[list[int]]:
    target = source.load(index, {"semantic"}).targets["semantic"]
    assert isinstance(target, SemanticTarget)
    return target.labels.tolist()  # type: ignore[no-any-return]


def voc(root: Path, pixels: np.ndarray | None = None) -> Callable[[], VocSource]:
    for name in ("2007_000032", "2007_000039"):
        image(root / "JPEGImages" / f"{name}.jpg")
        (root / "SegmentationClass").mkdir(exist_ok=True)
        picture = Image.fromarray(np.array([[0, 1, 20], [255, 15, 0]], np.uint8) if pixels is None else pixels, "P")
        picture.putpalette([value for color in VOC.colors for value in color])
        picture.save(root / "SegmentationClass" / f"{name}.png")
    image(root / "JPEGImages" / "2011_000001.jpg")  # of another task: it has no label map, and no list names it
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000039\n2007_000032\n")
    return lambda: VocSource(root=str(root), split="val")


def test_voc_is_what_its_list_says_and_its_pictures_are_indices(tmp_path: Path) -> None:
    source = voc(tmp_path)()
    assert [source.load(i, []).info.id for i in range(len(source))] == ["2007_000039", "2007_000032"]
    assert labels_of(source) == [[0, 1, 20], [IGNORE, 15, 0]]
    assert source.load(0, []).targets == {}
    assert source.describe(0).endswith("JPEGImages/2007_000039.jpg")


def test_colours_of_voc() -> None:
    names = dict(zip(VOC.names, VOC.colors))
    assert names["aeroplane"] == (128, 0, 0)
    assert names["person"] == (192, 128, 128)
    assert names["tvmonitor"] == (0, 64, 128)


def test_cityscapes_becomes_the_classes_it_is_judged_by(tmp_path: Path) -> None:
    for city, number in (("ulm", 0), ("aachen", 1)):
        name = f"{city}_00000{number}_000019"
        image(tmp_path / "leftImg8bit/val" / city / f"{name}_leftImg8bit.png")
        ids = np.array([[7, 8, 33], [0, 9, 26]], np.uint8)
        write(tmp_path / "gtFine/val" / city / f"{name}_gtFine_labelIds.png", ids)
        write(tmp_path / "gtFine/val" / city / f"{name}_gtFine_color.png", np.zeros((2, 3, 3), np.uint8))
    source = CityscapesSource(root=str(tmp_path), split="val")
    assert len(source) == 2
    assert source.load(0, []).info.id == "aachen/aachen_000001_000019"
    assert labels_of(source) == [[0, 1, 18], [IGNORE, IGNORE, 13]]
    with pytest.raises(DataError, match="gtCoarse/val: no such folder"):
        CityscapesSource(root=str(tmp_path), split="val", quality="gtCoarse")


def test_nothing_is_no_class_of_ade20k(tmp_path: Path) -> None:
    image(tmp_path / "images/training/ADE_train_00000001.jpg")
    write(tmp_path / "annotations/training/ADE_train_00000001.png", np.array([[0, 1, 2], [150, 13, 0]], np.uint8))
    source = Ade20kSource(root=str(tmp_path))
    assert labels_of(source) == [[IGNORE, 0, 1], [149, 12, IGNORE]]
    assert source.labels["semantic"].names[12] == "person"


def test_camvid_in_indices_and_in_colours(tmp_path: Path) -> None:
    image(tmp_path / "train/0001TP_006690.png")
    write(tmp_path / "trainannot/0001TP_006690.png", np.array([[0, 3, 10], [11, 8, 0]], np.uint8))
    assert labels_of(CamvidSource(root=str(tmp_path))) == [[0, 3, 10], [IGNORE, 8, 0]]

    image(tmp_path / "val/0016E5_07959.png")
    colors = [[(128, 128, 128), (128, 0, 192), (192, 0, 192)], [(0, 0, 0), (192, 128, 192), (64, 64, 0)]]
    write(tmp_path / "val_labels/0016E5_07959_L.png", np.array(colors, np.uint8))
    assert labels_of(CamvidSource(root=str(tmp_path), split="val")) == [[0, 3, 10], [IGNORE, 8, 9]]


def test_camvid_has_31_colours_besides_void() -> None:
    colors = [color for group in CAMVID_COLORS.values() for color in group]
    assert len(colors) == len(set(colors)) == 31


@pytest.mark.parametrize(("name", "count"), [("voc", 21), ("cityscapes", 19), ("ade20k", 150), ("camvid", 11)])
def test_they_are_known_by_name(name: str, count: int) -> None:
    assert len(label_set(name)) == count
    assert issubclass(PluginManager().load("source", name), Source)
    assert label_set(name) in (VOC, CITYSCAPES, ADE20K, CAMVID)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt: cannot be read: No such file"):
        VocSource(root=str(tmp_path))
    make = voc(tmp_path / "a", np.full((2, 3), 21, np.uint8))
    with pytest.raises(DataError, match=r"6 pixels of value 21; the classes are 0 \.\.\. 20, and 255 is ignored"):
        labels_of(make())
    make = voc(tmp_path / "b", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"is 2x2 .*but its image is 2x3"):
        labels_of(make())
    (tmp_path / "b/SegmentationClass/2007_000032.png").unlink()
    with pytest.raises(DataError, match=r"2007_000032\.png: no such file; .* lists it"):
        make()
    image(tmp_path / "images/training/x.jpg")
    image(tmp_path / "annotations/training/y.png")
    with pytest.raises(DataError, match=r"x\.jpg: has no label map"):
        Ade20kSource(root=str(tmp_path))
    write(tmp_path / "annotations/training/x.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match="not a map of class indices"):
        labels_of(Ade20kSource(root=str(tmp_path)))
