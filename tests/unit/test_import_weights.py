"""Weights of torchvision's models: imported by the command, they find what torchvision finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from tests.lively import spread
from visionkit.cli.import_weights import command
from visionkit.config import parse_pipeline
from visionkit.data.base import Sample
from visionkit.data.coco_classes import COCO_OBJECTS, COCO_OBJECTS_90, COCO_PERSONS
from visionkit.data.loader import collate
from visionkit.data.transforms import Normalize, Resize
from visionkit.errors import PluginError, UserError
from visionkit.model.build import build_model
from visionkit.model.importing import import_model, read_state, rename
from visionkit.model.run import load_model
from visionkit.model.torchvision import published_batch_norms
from visionkit.plugins import PluginManager
from visionkit.rle import decode
from visionkit.types import ImageInfo
from visionkit_rcnn.torchvision_weights import FasterRCNN, MaskRCNN

MASK = "torchvision/maskrcnn_resnet50_fpn"
KEYPOINT = "torchvision/keypointrcnn_resnet50_fpn"
BOXES_V2 = "torchvision/fasterrcnn_resnet50_fpn_v2"
MASK_V2 = "torchvision/maskrcnn_resnet50_fpn_v2"


def random_reference(name: str, images: list[Tensor]) -> nn.Module:
    make = getattr(detection, name.removeprefix("torchvision/"))
    torch.manual_seed(0)
    options = {"box_detections_per_img": 5, "rpn_post_nms_top_n_test": 30}  # for time; both are in the pipeline too
    model = make(weights=None, weights_backbone=None, min_size=96, max_size=160, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    boxes, rpn = model.roi_heads.box_predictor, model.rpn.head
    batch = model.transform(images)[0]
    with torch.no_grad():
        features = model.backbone(batch.tensors)
        for layer, std in ((rpn.cls_logits, 2.0), (rpn.bbox_pred, 0.3)):
            spread(layer, std, lambda: model.rpn(batch, features))
        heads, proposals = model.roi_heads, model.rpn(batch, features)[0]
        pooled = heads.box_roi_pool(features, proposals, batch.image_sizes)
        for layer, std in ((boxes.cls_score, 2.0), (boxes.bbox_pred, 0.5)):
            spread(layer, std, lambda: boxes(heads.box_head(pooled)))
        if "mask" in name:  # else its masks are all 0 or 1, and where they meet exactly at 0.5 the last bit decides
            pooled = heads.mask_head(heads.mask_roi_pool(features, proposals, batch.image_sizes))
            spread(heads.mask_predictor.mask_fcn_logits, 2.0, lambda: heads.mask_predictor(pooled))
    return model


def blocks(height: int, width: int) -> Tensor:
    """An image of coloured rectangles; of noise a random network would see the same everywhere."""
    coarse = torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8)
    return F.interpolate(coarse, size=(height, width))[0]


# The second version's numbers are what torchvision publishes with its weights.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [(MASK, 44_401_393), (KEYPOINT, 59_137_258), (BOXES_V2, 43_712_278), (MASK_V2, 46_359_409)],
)
def test_imported_run_finds_what_torchvision_finds(name: str, parameters: int, tmp_path: Path) -> None:
    pixels = [
        torch.randint(0, 256, (3, 141, 203), dtype=torch.uint8),
        torch.randint(0, 256, (3, 97, 61), dtype=torch.uint8),
    ]
    images = [image / 255 for image in pixels]
    theirs = random_reference(name, images)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    command(name, tmp_path / "weights.pth", tmp_path / "run")

    few = ("heads.boxes.detections=5", "heads.boxes.rpn_after_nms=30")
    run = load_model(tmp_path / "run", PluginManager(), few)
    assert sum(p.numel() for p in run.model.parameters()) == parameters
    assert [(t.name, t.args) for t in run.pipeline.evaluate.transforms] == [
        ("normalize", {}),
        ("resize", {"short": 800, "long": 1333, "exact": True}),
    ]
    normalize, resize = Normalize(), Resize(short=96, long=160, exact=True)
    samples = [
        resize(normalize(Sample(image, ImageInfo(i, "", tuple(image.shape[-2:]), tuple(image.shape[-2:])))))
        for i, image in enumerate(pixels)
    ]
    batch = collate(samples).normalised(run.model.mean, run.model.std, channels_last=False)
    assert not run.pipeline.train.channels_last
    theirs_in = theirs.transform(images)[0].tensors
    assert torch.equal(batch.images, theirs_in)
    with torch.no_grad():
        expected = theirs(images)
        got = run.model.predict(batch)
    for row, want in enumerate(expected):
        assert len(want["boxes"]) == 5
        boxes = got["boxes"][row]
        torch.testing.assert_close(boxes.boxes, want["boxes"], atol=2e-5, rtol=0)
        torch.testing.assert_close(boxes.scores, want["scores"], atol=1e-6, rtol=0)
        ids = torch.tensor(run.labels["boxes"].ids)[boxes.labels]
        assert torch.equal(ids, want["labels"])
        if "mask" in name:
            for rle, mask in zip(got["masks"][row].rles, want["masks"][:, 0] > 0.5):
                own = torch.from_numpy(decode(rle)).bool()
                assert (own & mask).sum() >= 0.999 * (own | mask).sum()
        if "keypoint" in name:
            points = got["keypoints"][row].keypoints
            torch.testing.assert_close(points[..., :2], want["keypoints"][..., :2], atol=2e-5, rtol=0)


def test_boxes_alone_have_as_many_parameters_as_torchvision() -> None:
    with torch.device("meta"):
        theirs = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        text, labels = FasterRCNN().describe(theirs.state_dict())
        model = build_model(parse_pipeline(text, "boxes"), PluginManager(), labels)
    assert sum(p.numel() for p in model.parameters()) == 41_755_286


def test_labels_are_those_of_coco() -> None:
    assert len(COCO_OBJECTS_90) == 90
    assert COCO_OBJECTS_90.ids == tuple(range(1, 91))
    assert sum(name.startswith("unused") for name in COCO_OBJECTS_90.names) == 10
    for number, name in ((1, "person"), (13, "stop sign"), (44, "bottle"), (62, "chair"), (90, "toothbrush")):
        assert COCO_OBJECTS_90.names[number - 1] == name
    assert len(COCO_OBJECTS) == 80
    assert COCO_OBJECTS.ids[:12] == (*range(1, 12), 13)
    for name, number in zip(COCO_OBJECTS.names, COCO_OBJECTS.ids):
        assert COCO_OBJECTS_90.names[number - 1] == name
    assert COCO_PERSONS.keypoints[:3] == ("nose", "left_eye", "right_eye")
    assert [COCO_PERSONS.keypoints[i] for i in COCO_PERSONS.swaps[-1]] == ["left_ankle", "right_ankle"]
    assert len(COCO_PERSONS.keypoints) == 17
    for a, b in COCO_PERSONS.swaps:
        assert COCO_PERSONS.keypoints[a].removeprefix("left") == COCO_PERSONS.keypoints[b].removeprefix("right")


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as torchvision wrote it before 0.13, with frozen batch norms."""
    old = {}
    for name, tensor in state.items():
        for new, before in (("_blocks.%d.0.", "_blocks.%d."), ("mask_head.%d.0.", "mask_head.mask_fcn%d.")):
            for i in range(4):
                name = name.replace(new % i, before % (i + ("fcn" in before)))
        if not name.endswith("num_batches_tracked"):
            old[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = tensor
    return old


def test_published_files_have_other_names_and_batch_norms_without_epsilon() -> None:
    with torch.device("meta"):
        new = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    new = {name: torch.rand(tensor.shape) if tensor.ndim < 2 else tensor for name, tensor in new.items()}
    importer = MaskRCNN()
    theirs, ours = importer.convert(published_names(new)), importer.convert(new)
    assert theirs.keys() == ours.keys()
    assert "heads.masks.conv.3.conv.bias" in ours
    assert all(torch.equal(theirs[k], ours[k]) for k in ours if ours[k].ndim < 2 and not k.startswith("backbone"))

    torch.manual_seed(0)
    state = {
        "weight": torch.randn(6), "bias": torch.randn(6), "running_mean": torch.randn(6),
        "running_var": torch.tensor([1e-9, 1e-7, 1e-5, 1e-3, 0.5, 3.0]),
    }  # fmt: skip
    without, with_epsilon = FrozenBatchNorm2d(6, eps=0.0), FrozenBatchNorm2d(6, eps=1e-5)
    without.load_state_dict(state)
    folded = published_batch_norms({f"bn.{k}": v for k, v in state.items()})
    with_epsilon.load_state_dict({k.removeprefix("bn."): v for k, v in folded.items()})
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(with_epsilon(x), without(x), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def boxes_state() -> dict[str, Tensor]:
    with torch.device("meta"):
        model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}


def test_wrong_tensors_are_named(boxes_state: dict[str, Tensor], tmp_path: Path) -> None:
    file, plugins = tmp_path / "weights.safetensors", PluginManager()
    state = {**boxes_state, "rpn.head.cls_logits.bias": torch.zeros(4)}
    del state["rpn.head.bbox_pred.bias"]
    save_file(state, file)
    with pytest.raises(UserError) as error:
        import_model(FasterRCNN(), file, plugins)
    message = str(error.value)
    assert str(file) in message
    assert "heads.boxes.rpn.deltas.bias is missing" in message
    assert "heads.boxes.rpn.objectness.bias has shape (4,), not (3,)" in message

    del boxes_state["roi_heads.box_head.fc7.weight"]
    save_file(boxes_state, file)
    with pytest.raises(UserError, match=r"fc7\.weight is missing; its tensors are called "):
        import_model(FasterRCNN(), file, plugins)

    boxes_state["roi_heads.box_head.fc7.weight"] = torch.zeros(1024, 1024)
    save_file({**boxes_state, "roi_heads.mask_head.0.0.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"another model: roi_heads\.mask_head\.0\.0\.weight"):
        import_model(FasterRCNN(), file, plugins)


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weights file"):
        read_state(tmp_path / "absent.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"broken\.pth: cannot be read as weights"):
        read_state(tmp_path / "broken.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(UserError, match="no state dict"):
        read_state(tmp_path / "numbers.pth")
    torch.save({"model": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert read_state(tmp_path / "checkpoint.pth").keys() == {"a"}


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (Path(tmp_path / "ran").write_text, ("",))

    torch.save({"a": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()


def test_the_command_overwrites_nothing_and_suggests_names(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        command(MASK, tmp_path / "weights.pth", tmp_path / "run")
    with pytest.raises(PluginError, match=f"did you mean '{MASK}'"):
        command("torchvision/maskrcnn_resnet50", tmp_path / "weights.pth", tmp_path / "new")


def test_every_importer_is_in_the_how_to() -> None:
    text = (Path(__file__).parents[2] / "docs/how-to/import-weights.md").read_text(encoding="utf-8")
    names = [listed.component.name for listed in PluginManager().components("importer")]
    assert len(names) > 30
    assert [name for name in names if f"`{name}`" not in text] == []


def test_numbers_in_prefixes_are_taken_over() -> None:
    one = torch.ones(1)
    state = {"a.3.b.12.w": one, "a.3.c": one, "a.x": one}
    names = {"a.#.": "m.#.", "a.#.b.#.": "n.#.#.", "a.": "rest."}
    assert rename(state, names).keys() == {"n.3.12.w", "m.3.c", "rest.x"}


def test_longest_prefix_wins() -> None:
    one = torch.ones(1)
    assert rename({"a.b.c": one, "a.x": one}, {"a.": "m.", "a.b.": "n."}).keys() == {"n.c", "m.x"}
    with pytest.raises(UserError, match="twice"):
        rename({"a.0.w": one, "a.w": one}, {"a.0.": "m.", "a.": "m."})
    with pytest.raises(UserError, match=r"z\.1, z\.2, z\.3 and 1 more"):
        rename({f"z.{i}": one for i in range(1, 5)}, {"a.": "m."})
