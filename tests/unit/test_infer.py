"""The predictor and the writers, with heads that find what is bright: anyone can say what they must answer."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools.coco import COCO
from torch import Tensor

from visionkit import rle
from visionkit.data import Sample, Transform
from visionkit.data.transforms import Resize
from visionkit.errors import DataError, UserError
from visionkit.infer import PredictionWriter, Predictor, pick_device
from visionkit.model import Backbone, Head, MultiTaskModel
from visionkit.types import (
    BoxPrediction,
    FeatureSpec,
    LabelSet,
    Level,
    MaskPrediction,
    Output,
    Prediction,
    SemanticOutput,
    SemanticPrediction,
)

LABELS = {
    "boxes": LabelSet(("bright",), (7,)),
    "masks": LabelSet(("bright",), (7,)),
    "regions": LabelSet(("dark", "bright"), things=(False, False)),
    "mood": LabelSet(("gay", "sad")),
}


class Plain(Backbone):
    """The images themselves, in units of 0 ... 1."""

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.spec = FeatureSpec({"c0": Level(3, 1)})
        self.passes = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.passes += 1
        assert not torch.is_grad_enabled()
        return {"c0": images}


class Regions(Head):
    task, makes, output, loss_names = "semantic", SemanticPrediction, SemanticOutput, ()
    levels = ("c0",)

    def forward(self, features, batch, upstream):
        bright = features["c0"].mean(1, keepdim=True)
        return SemanticOutput(torch.cat((0.5 - bright, bright - 0.5), 1))

    def predict(self, output, batch):
        """At the original size, by the nearest pixel."""
        maps = []
        for logits, info in zip(output.logits, batch.info):
            (h, w), (H, W) = info.size, info.original_size
            rows, columns = torch.arange(H) * h // H, torch.arange(W) * w // W
            maps.append(SemanticPrediction(logits.argmax(0)[rows][:, columns].to(torch.uint8)))
        return maps


class Boxes(Regions):
    task, makes = "boxes", BoxPrediction

    def predict(self, output, batch):
        return [boxes_of(found.labels.numpy()) for found in super().predict(output, batch)]


class Masks(Regions):
    task, makes = "masks", MaskPrediction

    def predict(self, output, batch):
        maps = [found.labels.numpy() for found in super().predict(output, batch)]
        found = [boxes_of(m) for m in maps]
        return [MaskPrediction(b.boxes, b.scores, b.labels, [rle.encode(m)] * len(b)) for b, m in zip(found, maps)]


@dataclass
class Mood(Prediction):
    """A stranger's kind of prediction."""

    level: int

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        return np.full_like(image, self.level)

    def files(self) -> dict[str, np.ndarray]:
        return {"_low": np.full((2, 3), self.level, np.uint8), "_color": np.full((2, 3, 3), (255, 0, 9), np.uint8)}


class Moods(Regions):
    task, makes, output = "mood", Mood, Output

    def predict(self, output, batch):
        return [Mood(42) for _ in batch.info]


def boxes_of(mask: np.ndarray) -> BoxPrediction:
    x, y, w, h = cv2.boundingRect(mask)
    box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)[: int(w > 0)]
    return BoxPrediction(box, torch.ones(len(box)), torch.zeros(len(box)).long())


class Double(Transform):
    """Twice the size."""

    def __call__(self, sample: Sample) -> Sample:
        image = sample.image.repeat_interleave(2, 1).repeat_interleave(2, 2)
        size = (image.shape[1], image.shape[2])
        return replace(sample, image=image, info=replace(sample.info, size=size, affine=(2.0, 0, 0, 0, 2.0, 0)))


def make(*names: str, transforms: tuple[Transform, ...] = ()) -> Predictor:
    kinds = {"boxes": Boxes, "masks": Masks, "regions": Regions, "mood": Moods}
    backbone = Plain()
    heads = {name: kinds[name](backbone.spec, LABELS[name]) for name in names or kinds}
    return Predictor(MultiTaskModel(backbone, None, heads), LABELS, transforms)


def scene(x: int = 10, y: int = 20, w: int = 30, h: int = 8, size: tuple[int, int] = (50, 70)) -> np.ndarray:
    image = np.full((*size, 3), 40, np.uint8)
    image[y : y + h, x : x + w] = (250, 240, 230)
    return image


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


@pytest.mark.parametrize("transforms", [(), (Double(),)], ids=["as it is", "twice the size"])
def test_files_arrays_and_pil_images_give_the_same_in_original_coordinates(
    tmp_path: Path, transforms: tuple[Transform, ...]
) -> None:
    image = scene()
    file = write(tmp_path / "a.png", image)
    predictor = make(transforms=transforms)
    for given in (file, str(file), image, PIL.Image.fromarray(image), PIL.Image.fromarray(image).convert("RGBA")):
        (found,) = predictor.predict(given)
        assert found["boxes"].boxes.tolist() == [[10, 20, 40, 28]]
        assert found["regions"].labels.shape == (50, 70)
        assert int(found["regions"].labels.sum()) == 30 * 8
        assert int(rle.decode(found["masks"].rles[0]).sum()) == 30 * 8


def test_red_is_red(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 200
    (result,) = make("boxes").stream(write(tmp_path / "red.png", image))
    assert (result.image == image).all()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_of_different_sizes_keep_their_order(batch_size: int) -> None:
    images = [scene(x=3 * i, size=(40 + i, 70 - i)) for i in range(5)]
    predictor = make("boxes", "regions")
    found = predictor.predict(images, batch_size=batch_size)
    assert [f["boxes"].boxes[0, 0].item() for f in found] == [0, 3, 6, 9, 12]
    assert [tuple(f["regions"].labels.shape) for f in found] == [(40 + i, 70 - i) for i in range(5)]
    assert predictor.model.backbone.passes == -(-5 // batch_size)  # whatever the number of heads


def test_only_the_heads_that_are_asked_answer() -> None:
    assert list(make().predict(scene(), heads=["masks", "mood"])[0]) == ["masks", "mood"]
    assert list(make().predict(scene(), heads="masks")[0]) == ["masks"]
    with pytest.raises(UserError, match=r"no head 'boxs' in this run \(heads: boxes.*did you mean 'boxes'"):
        make().predict(scene(), heads=["boxs"])


def test_a_generator_is_drawn_from_as_results_are_taken() -> None:
    drawn = []

    def images() -> Iterator[np.ndarray]:
        for i in range(1000):
            drawn.append(i)
            yield scene()

    results = make("boxes").stream(images(), batch_size=2)
    next(results)
    assert len(drawn) < 20
    results.close()


def test_an_image_that_cannot_be_read_is_named_or_skipped(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jpg", scene())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(good.read_bytes()[:300])
    with pytest.raises(DataError, match=r"broken\.jpg"):
        make("boxes").predict([good, broken, good])
    with pytest.raises(DataError, match=r"missing\.jpg"):
        make("boxes").predict([tmp_path / "missing.jpg"])
    found = make("boxes").predict([broken, good, broken, good], on_error="skip", batch_size=2)
    assert [len(f) for f in found] == [0, 1, 0, 1]
    (result, _) = make("boxes").stream([broken, good], on_error="skip")
    assert "broken.jpg" in str(result.error)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 4)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 5), np.uint8), 7])
def test_what_is_no_image_is_said(wrong: object) -> None:
    with pytest.raises(DataError, match=r"image 0: an array \(H, W, 3\) of uint8 RGB"):
        make("boxes").predict([wrong])


def test_devices_and_precisions_that_are_not_there_are_named() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto") == pick_device(None)
    with pytest.raises(UserError, match=r"no device 'gpu'"):
        pick_device("gpu")
    with pytest.raises(UserError, match=r"'cuda:99' is not available"):
        pick_device("cuda:99")
    model = make("boxes").model
    with pytest.raises(UserError, match=r"no precision 'fp16' .*bf16-mixed"):
        Predictor(model, LABELS, precision="fp16")
    assert Predictor(model, LABELS, precision="bf16-mixed").predict(scene())[0]["boxes"].boxes.tolist() == [
        [10, 20, 40, 28]
    ]


def predict_into(out: Path, names: list[str], **options: object) -> PredictionWriter:
    predictor = make()
    with PredictionWriter(out, LABELS, **options) as writer:
        for number, (result, name) in enumerate(zip(predictor.stream([scene()] * len(names)), names)):
            writer.add(result.predictions, image_id=number + 5, name=name, image=result.image)
    return writer


def test_results_load_in_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict_into(tmp_path, ["a", "b"])
    truth = COCO()
    truth.dataset = {"images": [{"id": 5}, {"id": 6}], "categories": [{"id": 7, "name": "bright"}], "annotations": []}
    truth.createIndex()
    for head in ("boxes", "masks"):
        loaded = truth.loadRes(str(tmp_path / f"{head}.json")).dataset["annotations"]
        assert [(a["image_id"], a["category_id"], list(a["bbox"])) for a in loaded] == [
            (i, 7, [10, 20, 30, 8]) for i in (5, 6)
        ]
    assert loaded[0]["area"] == 30 * 8
    assert not (tmp_path / "regions.json").exists()
    assert not (tmp_path / "mood.json").exists()


def test_label_maps_and_pictures_have_their_places(tmp_path: Path) -> None:
    writer = predict_into(tmp_path, ["a/1", "b/1"])
    for name in ("a/1", "b/1"):
        label_map = cv2.imread(str(tmp_path / "regions" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert label_map.shape == (50, 70)
        assert label_map.sum() == 30 * 8
        assert cv2.imread(str(tmp_path / "pictures" / f"{name}.jpg")).shape[1] > 300
        color = cv2.imread(str(tmp_path / "mood" / f"{name}_color.png"))
        assert color[0, 0].tolist() == [9, 0, 255]  # OpenCV's order
        assert (tmp_path / "mood" / f"{name}_low.png").exists()
    assert writer.counts == {"boxes.json": 2, "masks.json": 2, "regions/": 2, "mood/": 4, "pictures/": 2}


def test_nothing_found_is_an_empty_list(tmp_path: Path) -> None:
    predictor = make("boxes")
    with PredictionWriter(tmp_path, LABELS, pictures=False) as writer:
        writer.add(predictor.predict(scene(w=0))[0], image_id="x.jpg", name="x", image=scene())
    assert json.loads((tmp_path / "boxes.json").read_text()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"boxes.json", "predictions.jsonl"}


def test_old_results_stay_whole_until_the_writer_is_closed_and_an_error_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("old")
    predictor = make("boxes")
    writer = PredictionWriter(tmp_path, LABELS, pictures=False)
    with contextlib.suppress(RuntimeError), writer:
        writer.add(predictor.predict(scene())[0], image_id=1, name="a")
        assert (tmp_path / "boxes.json").read_text() == "old"
        raise RuntimeError("stopped half-way")
    assert [record["image_id"] for record in json.loads((tmp_path / "boxes.json").read_text())] == [1]
    (tmp_path / "boxes.json").write_text("old")
    writer = PredictionWriter(tmp_path, LABELS, pictures=False)
    writer.add(predictor.predict(scene())[0], image_id=1, name="a")
    writer.close(keep=False)
    assert (tmp_path / "boxes.json").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"boxes.json", "predictions.jsonl"}


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out"), PredictionWriter(tmp_path / "out", LABELS) as writer:
        writer.add(make("boxes").predict(scene())[0], image_id=1, name="a")


def test_a_resumed_writer_continues_and_gives_the_same_files(tmp_path: Path) -> None:
    (result,) = make().stream(scene())
    for out, names in (("whole", "abc"), ("parts", "ab"), ("parts", "c")):
        with PredictionWriter(tmp_path / out, LABELS, resume=names == "c") as writer:
            for name in "abc":
                if writer.completed(name):
                    writer.keep(name)
                elif name in names:
                    writer.add(result.predictions, image_id=name, name=name, image=result.image)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert writer.counts["boxes.json"] == 3


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_that_were_not_renamed_yet_are_when_the_writer_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed just after the line of the journal."""
    (result,) = make("regions").stream(scene())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    writer = PredictionWriter(tmp_path, LABELS)
    monkeypatch.setattr("visionkit.infer.writers.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.add(result.predictions, image_id=1, name="a", image=result.image)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("a.*"))
    writer.close(keep=False)
    with PredictionWriter(tmp_path, LABELS, resume=True) as writer:
        assert writer.completed("a")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.png", "a.jpg", "predictions.jsonl"}
    (tmp_path / "regions" / "a.png").unlink()
    with PredictionWriter(tmp_path, LABELS, resume=True) as writer:
        assert not writer.completed("a")  # a file that is gone is predicted again


def test_what_cannot_be_drawn_costs_the_drawing_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Undrawable(Mood):
        def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
            raise MemoryError("no room for it")

    (result,) = make("boxes").stream(scene())
    with PredictionWriter(tmp_path, LABELS) as writer:
        predictions = result.predictions | {"mood": Undrawable(3)}
        writer.add(predictions, image_id=1, name="a", image=result.image)
    assert caplog.messages == ["a: no visualization: MemoryError: no room for it"]
    assert writer.counts == {"boxes.json": 1, "mood/": 2}
    assert writer.problems == 1


def test_names_are_safe_different_and_of_bounded_length(tmp_path: Path) -> None:
    (result,) = make("regions").stream(scene())
    names = ["../up", "a" * 300, "a" * 301, "d/" * 600 + "x", "new\nline", "nul\0", "", "..", "same", "same", "50%"]
    with PredictionWriter(tmp_path / "out", LABELS, pictures=False) as writer:
        for name in names:
            writer.add(result.predictions, image_id=name, name=name)
    assert len(list((tmp_path / "out").rglob("*.png"))) == len(names)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "regions" / "50%.png").exists()


def test_inputs_are_not_overwritten(tmp_path: Path) -> None:
    image = write(tmp_path / "pictures" / "a.jpg", scene())
    before = image.read_bytes()
    (result,) = make("boxes").stream(image)
    with PredictionWriter(tmp_path, LABELS, protected=[image]) as writer:
        writer.add(result.predictions, image_id=1, name="a", image=result.image)
    assert image.read_bytes() == before
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    with pytest.raises(UserError, match=r"boxes\.json is part of the input"):
        PredictionWriter(tmp_path, LABELS, protected=[tmp_path / "boxes.json"])


def test_a_full_disk_is_one_line_and_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (result,) = make("boxes").stream(scene())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = PredictionWriter(tmp_path, LABELS, pictures=False)
    writer.add(result.predictions, image_id=1, name="a")
    with monkeypatch.context() as patch:
        patch.setattr("visionkit.results.files.os.replace", full)
        with pytest.raises(UserError, match=r"boxes\.json: cannot be written: No space left on device"):
            writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    with PredictionWriter(tmp_path, LABELS, pictures=False, resume=True) as writer:
        writer.keep("a")
    assert len(json.loads((tmp_path / "boxes.json").read_text())) == 1


def test_images_are_predicted_as_they_are_displayed(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    photo = PIL.Image.fromarray(scene())
    photo.save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(scene(), -1)
    expected = make("regions").predict(np.ascontiguousarray(upright))[0]["regions"].labels
    for image in (tmp_path / "a.png", PIL.Image.open(tmp_path / "a.png"), (upright * np.uint16(257)), upright / 255):
        (result,) = make("regions").stream(image)
        assert result.info.original_size == upright.shape[:2]
        np.testing.assert_array_equal(result.predictions["regions"].labels, expected)


def test_an_image_that_a_transform_refuses_is_skipped_too(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jpg", scene())
    PIL.Image.new("RGB", (70_000, 1)).save(tmp_path / "strip.png")
    predictor = make("boxes", transforms=(Resize(short=800),))
    with pytest.raises(DataError, match=r"strip\.png: would be resized"):
        predictor.predict([tmp_path / "strip.png"])
    results = list(make("boxes", transforms=(Resize(short=8000),)).stream([tmp_path / "strip.png"], on_error="skip"))
    assert "strip.png" in str(results[0].error)
    assert len(predictor.predict([good, tmp_path / "strip.png"], on_error="skip")[0]) == 1
