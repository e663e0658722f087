"""Folders of images and label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionkit.data.folder import FolderSource
from visionkit.data.label_maps import LabelCounts, label_map_problems
from visionkit.errors import DataError
from visionkit.types import IGNORE, LabelSet

MAP = np.array([[0, 1, 2, 255], [2, 2, 0, 0]], np.uint8)


def make(folder: Path, masks: dict[str, Image.Image]) -> dict[str, str]:
    """Two images and these label maps."""
    for name in ("a.jpg", "sub/b.png"):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(path)
    for name, mask in masks.items():
        path = folder / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


def both(mask: Image.Image) -> dict[str, Image.Image]:
    return {"a.png": mask, "sub/b.png": mask}


def palette_image() -> Image.Image:
    image = Image.fromarray(MAP, mode="P")
    image.putpalette([7] * 768)
    return image


@pytest.mark.parametrize(
    "mask", [Image.fromarray(MAP), Image.fromarray(MAP.astype(np.uint16)), palette_image()], ids=["8", "16", "palette"]
)
def test_label_maps(mask: Image.Image, tmp_path: Path) -> None:
    source = FolderSource(**make(tmp_path, both(mask)), classes=["x", "y", "z"])
    assert len(source) == 2
    assert source.labels["semantic"].names == ("x", "y", "z")
    sample = source.load(1, ["semantic"])
    assert sample.info.id == "sub/b.png"
    np.testing.assert_array_equal(sample.targets["semantic"].labels.numpy(), MAP)
    assert source.load(1, []).targets == {}


def test_another_value_may_be_ignored(tmp_path: Path) -> None:
    values = np.where(MAP == 255, 9, MAP).astype(np.uint16) * 1
    source = FolderSource(**make(tmp_path, both(Image.fromarray(values))), classes=["x", "y", "z"], ignore=9)
    np.testing.assert_array_equal(source.load(0, ["semantic"]).targets["semantic"].labels.numpy(), MAP)


def test_colours(tmp_path: Path) -> None:
    colors = np.zeros((2, 4, 3), np.uint8)
    colors[MAP == 0], colors[MAP == 1], colors[MAP == 2] = (255, 0, 0), (0, 0, 255), (1, 2, 3)
    palette = {"x": [255, 0, 0], "y": [0, 0, 255], "z": [1, 2, 3]}
    source = FolderSource(**make(tmp_path, both(Image.fromarray(colors))), palette=palette)
    labels = source.load(0, ["semantic"]).targets["semantic"].labels.numpy()
    np.testing.assert_array_equal(labels, np.where(MAP == 255, IGNORE, MAP))
    assert source.labels["semantic"].colors == ((255, 0, 0), (0, 0, 255), (1, 2, 3))


def test_images_alone(tmp_path: Path) -> None:
    source = FolderSource(images=make(tmp_path, {})["images"])
    assert len(source) == 2
    assert list(source.tasks) == []


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    mask = Image.fromarray(MAP)
    files = make(tmp_path, {"a.png": mask})
    with pytest.raises(DataError, match=r"b\.png: has no label map .*masks/sub/b\.png"):
        FolderSource(**files, classes=["x"])
    files = make(tmp_path, {"sub/b.png": mask, "c.png": mask})
    with pytest.raises(DataError, match=r"c\.png: a label map without an image"):
        FolderSource(**files, classes=["x"])
    (tmp_path / "masks" / "c.png").unlink()
    with pytest.raises(DataError, match="label maps need 'classes'"):
        FolderSource(**files)
    with pytest.raises(DataError, match=r"a\.png: 3 pixels of value 2; the 2 classes are 0 \.\.\. 1, and 255 is"):
        FolderSource(**files, classes=["x", "y"]).load(0, ["semantic"])
    make(tmp_path, {"a.png": Image.fromarray(MAP[:, :3])})
    with pytest.raises(DataError, match=r"a\.png: is 2x3 \(height x width\), but its image is 2x4"):
        FolderSource(**files, classes=["x", "y", "z"]).load(0, ["semantic"])
    make(tmp_path, {"a.png": Image.fromarray(np.zeros((2, 4, 3), np.uint8))})
    with pytest.raises(DataError, match=r"a\.png: is a colour image"):
        FolderSource(**files, classes=["x", "y", "z"]).load(0, ["semantic"])
    with pytest.raises(DataError, match="no such folder"):
        FolderSource(images=str(tmp_path / "none"))


# -- binary masks -----------------------------------------------------------------------------------------------------


def folders(folder: Path, masks: list[np.ndarray]) -> dict[str, str]:
    """So many images, and these label maps."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(np.zeros((*mask.shape[:2], 3), np.uint8)).save(folder / f"images/{number}.png")
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


def mask(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array(values, dtype).reshape(2, -1)


def labels_of(source: FolderSource, index: int = 0) -> list[int]:
    return source.targets(index, ["semantic"])["semantic"].labels.ravel().tolist()


def test_255_is_foreground_in_binary_masks(tmp_path: Path) -> None:
    files = folders(tmp_path, [mask(0, 0, 0, 0), mask(0, 255, 255, 0)])
    source = FolderSource(**files, classes=["background", "swan"])
    assert labels_of(source, 0) == [0, 0, 0, 0]
    assert labels_of(source, 1) == [0, 1, 1, 0]
    assert source.problems() == ["255 is the class 'swan' (of 1 masks that hold it, none holds the value 1)"]


def test_255_is_ignored_where_masks_hold_1(tmp_path: Path) -> None:
    files = folders(tmp_path, [mask(0, 1, 255, 0), mask(0, 0, 0, 0), mask(0, 1, 1, 255)])
    source = FolderSource(**files, classes=["background", "swan"])
    assert labels_of(source, 0) == [0, 1, IGNORE, 0]
    assert source.problems() == []


def test_what_is_said_of_255_is_done(tmp_path: Path) -> None:
    files = folders(tmp_path, [mask(0, 255, 255, 0)])
    ignored = FolderSource(**files, classes=["background", "swan"], ignore=255)
    assert labels_of(ignored) == [0, IGNORE, IGNORE, 0]
    with pytest.raises(DataError, match=r"0\.png: 2 pixels of value 255; the 2 classes .* none is ignored"):
        labels_of(FolderSource(**files, classes=["background", "swan"], ignore=None))
    assert labels_of(FolderSource(**files, classes=["a", "b", "c"])) == [0, IGNORE, IGNORE, 0]
    with pytest.raises(DataError, match=r"masks: label maps hold the values 0 and 255, but there is only one class"):
        FolderSource(**files, classes=["swan"])


def test_a_mask_that_contradicts_the_others_is_named(tmp_path: Path) -> None:
    files = folders(tmp_path, [mask(0, 255, 255, 0)] * 3)
    source = FolderSource(**files, classes=["background", "swan"])
    Image.fromarray(mask(0, 1, 1, 255)).save(tmp_path / "masks/2.png")
    with pytest.raises(DataError, match=r"2\.png: 2 pixels of value 1; 0 is 'background', and 255 is 'swan', because"):
        labels_of(source, 2)
    Image.fromarray(mask(0, 0, 0, 0)).save(tmp_path / "masks/0.png")
    Image.fromarray(mask(0, 0, 0, 0)).save(tmp_path / "masks/1.png")
    (tmp_path / "masks/2.png").write_bytes(b"")
    source = FolderSource(**files, classes=["background", "swan"])  # whatever 255 is, no mask tells it
    Image.fromarray(mask(0, 255, 255, 0)).save(tmp_path / "masks/2.png")
    with pytest.raises(DataError, match=r"2\.png: 2 pixels of value 255; .* no other mask holds 255"):
        labels_of(source, 2)


def test_masks_of_both_kinds_are_refused(tmp_path: Path) -> None:
    files = folders(tmp_path, [mask(0, 255, 255, 0), mask(0, 1, 1, 0)])
    with pytest.raises(DataError, match=r"1 label maps hold the value 1, and 1 others hold 255 but not 1.*ignore: 255"):
        FolderSource(**files, classes=["background", "swan"])


# -- values and colors ------------------------------------------------------------------------------------------------


def test_a_table_of_values(tmp_path: Path) -> None:
    files = folders(tmp_path, [mask(0, 128, 255, 60000, 7, 7, dtype=np.uint16)])
    table = {0: "background", 128: "boat", 60000: "boat", 255: "swan", 7: None}
    source = FolderSource(**files, values=table)
    assert source.labels["semantic"].names == ("background", "boat", "swan")
    assert labels_of(source) == [0, 1, 2, 1, IGNORE, IGNORE]
    named = FolderSource(**files, values=table, classes=["swan", "boat", "background"])
    assert labels_of(named) == [2, 1, 0, 1, IGNORE, IGNORE]
    del table[60000]
    with pytest.raises(DataError, match=r"0\.png: 1 pixels of value 60000; the values are .*128 \(boat\)"):
        labels_of(FolderSource(**files, values=table))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": {-1: "a"}}, r"holds the value -1; label maps have values in 0 \.\.\. 65535"),
        (
            {"values": {0: "a", 1: "b"}, "classes": ["a"]},
            r"gives 1 the class 'b', which is not among the classes \(a\)",
        ),
        ({"values": {0: "a"}, "classes": ["a", "b"]}, "gives no value to the class 'b'"),
        ({"values": {0: "a", 255: "b"}, "ignore": 255}, "gives 255 the class 'b', and 'ignore' ignores it"),
        ({"values": {0: "a"}, "palette": {"a": [0, 0, 0]}}, "exclude each other"),
        ({"classes": ["a", "a"]}, "the class 'a' is given twice"),
        ({"classes": ["a", "b", "c"], "ignore": 70000}, "pixel value 70000 is impossible"),
        ({"palette": {"a": [0, 0, 256]}}, "gives 'a' the color"),
        ({"palette": {"a": [0, 0, 1], "b": [0, 0, 1]}}, r"the color \[0, 0, 1\] is given twice"),
    ],
)
def test_tables_that_cannot_be_right_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        FolderSource(**folders(tmp_path, [mask(0, 0, 0, 0)]), **arguments)


PALETTE = {"water": [0, 0, 128], "swan": [255, 255, 255]}


def painting(*colors: tuple[int, int, int]) -> np.ndarray:
    """Vertical stripes of 8 x 4 pixels."""
    return np.repeat(np.array([colors], np.uint8), 8, 0).repeat(4, 1)


def test_colors_off_by_one_are_refused(tmp_path: Path) -> None:
    water, swan = (0, 0, 128), (255, 255, 255)
    files = folders(tmp_path, [painting(water, swan, water, swan)] * 2)
    source = FolderSource(**files, palette=PALETTE)
    assert source.problems() == []
    for near in ((254, 255, 255), (250, 251, 252)):  # too few to be a large share
        Image.fromarray(painting(water, water, water, water, near)).save(tmp_path / "masks/1.png")
        Image.fromarray(painting(*[(0, 0, 0)] * 5)).save(tmp_path / "images/1.png")
        message = (
            rf"1\.png: color \({near[0]}, .* is not in the palette; nearest: 'swan' \(255, 255, 255\); 20 % of the"
        )
        with pytest.raises(DataError, match=message + " pixels, while only 0 pixels have exactly the color"):
            labels_of(source, 1)


def test_many_unknown_colors_are_refused_unless_they_are_listed(tmp_path: Path) -> None:
    void = (9, 99, 200)
    files = folders(tmp_path, [painting((0, 0, 128), (255, 255, 255), void)] * 2)
    source = FolderSource(**files, palette=PALETTE)
    with pytest.raises(DataError, match=r"0\.png: color \(9, 99, 200\) is not in the palette; .*33 %.*ignore_colors"):
        labels_of(source)
    source = FolderSource(**files, palette=PALETTE, ignore_colors=[list(void)])
    assert set(labels_of(source)) == {0, 1, IGNORE}
    assert source.problems() == []


def test_few_unknown_colors_are_ignored_and_counted(tmp_path: Path) -> None:
    pixels = painting(*[(0, 0, 128), (255, 255, 255)] * 4)
    pixels[:, 3] = (128, 128, 190)
    source = FolderSource(**folders(tmp_path, [pixels]), palette=PALETTE)
    assert labels_of(source).count(IGNORE) == 8
    (line,) = source.problems()
    assert "color (128, 128, 190) is not in the palette" in line
    assert "3.1 % of the pixels of 1 label maps (1 of which have such colors); they are ignored" in line


def test_a_palette_whose_class_never_occurs_while_another_color_does_is_refused(tmp_path: Path) -> None:
    pixels = painting(*[(0, 0, 128)] * 9, (0, 0, 255))
    with pytest.raises(
        DataError, match=r"color \(0, 0, 255\) is not in the .*no pixel has the color of the class 'swan'"
    ):
        FolderSource(**folders(tmp_path, [pixels]), palette={"water": [0, 0, 128], "swan": [255, 0, 0]})


def test_sizes_are_those_of_the_displayed_image(tmp_path: Path) -> None:
    files = folders(tmp_path, [np.zeros((8, 4), np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "images/0.png", exif=exif)
    source = FolderSource(**files, classes=["a", "b", "c"])
    sample = source.load(0, ["semantic"])
    assert sample.image.shape[1:] == sample.targets["semantic"].labels.shape == (8, 4)
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(tmp_path / "masks/0.png")
    for load in (source.load, source.targets):
        with pytest.raises(
            DataError, match=r"masks/0\.png: is 4x8 .* its image is 8x4; .*images/0\.png .* EXIF orient"
        ):
            load(0, ["semantic"])


# -- what a sample of label maps says ---------------------------------------------------------------------------------


def test_classes_without_a_pixel_and_ignored_pixels_are_reported(tmp_path: Path) -> None:
    files = folders(tmp_path, [mask(0, 255, 255, 0), mask(0, 255, 0, 2)])
    source = FolderSource(**files, classes=["a", "b", "c"])
    assert label_map_problems("mine", source) == [
        "no pixel of the 2 label maps has the class 'b'",
        "38 % of the pixels of the 2 label maps are ignored",
    ]
    assert label_map_problems("mine", FolderSource(images=files["images"])) == []


def test_nothing_but_ignored_pixels_is_an_error(tmp_path: Path) -> None:
    source = FolderSource(**folders(tmp_path, [mask(255, 255, 255, 255)] * 2), classes=["a", "b", "c"])
    with pytest.raises(
        DataError, match=r"source 'mine': every pixel of the 2 label maps is ignored: none has a value .* a, b, c"
    ):
        label_map_problems("mine", source)


def test_a_small_sample_says_nothing_about_rare_classes() -> None:
    counts = LabelCounts(LabelSet(tuple("abcdefgh")))
    for _ in range(15):
        counts.add(np.zeros((2, 2), np.uint8))
    assert counts.lines(1000) == []
    counts.add(np.ones((2, 2), np.uint8))
    assert counts.lines(1000) == ["no pixel of 16 of 1,000 label maps has the class 'c', 'd', 'e', 'f', 'g' and 1 more"]
