"""Folders of label maps: class indices of 1, 8 and 16 bits, palettes, colors, and tables of values."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import PIL.Image
import torch

from tests.fuzz.images import mutate_image
from tests.fuzz.mutations import VALUES, Raw, change_tree, dump
from tests.fuzz.surfaces.coco import require
from visionkit.config.load import load_pipeline
from visionkit.data.wiring import build_sources
from visionkit.plugins import PluginManager
from visionkit.types import IGNORE, SemanticTarget

PIPELINE = """\
backbone: {{name: unet_encoder, width: 4, norm: batch, dropout: 0.0}}
heads:
  semantic: {{name: unet, levels: [c4, c3, c2, c1, c0], norm: batch}}
sources:
  fuzz: {source}
train: {{steps: 1, batch_size: 2, workers: 0}}
evaluate: {{batch_size: 2}}
"""
COLORS = {"a": [0, 0, 0], "b": [200, 30, 30], "c": [30, 30, 200]}
# Kind of label map -> arguments of the source; a kind is also the name of its seed.
KINDS: dict[str, dict[str, Any]] = {
    "indices": {"classes": ["a", "b", "c"]},
    "bits16": {"classes": ["a", "b", "c"], "ignore": None},
    "palette_png": {"classes": ["a", "b", "c"]},
    "tiff": {"classes": ["a", "b", "c"], "mask_suffix": ".tif"},
    "one_bit": {"classes": ["a", "b"]},
    "binary": {"classes": ["a", "b"]},
    "colors": {"palette": COLORS},
    "values": {"values": {"0": "a", "128": "b", "200": "c", "255": None}},
}
SIZE = (40, 48)


def seeds(folder: Path) -> list[Path]:
    """Three images with label maps of three classes and ignored pixels, of each kind."""
    rng = np.random.default_rng(0)
    for kind, options in KINDS.items():
        (folder / kind / "images").mkdir(parents=True)
        (folder / kind / "masks").mkdir()
        (folder / kind / "options.json").write_text(json.dumps(options))
        for number in range(3):
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            PIL.Image.fromarray(image).save(folder / kind / "images" / f"{number}.jpg")
            labels = np.kron(rng.integers(0, 3, (5, 6)), np.ones((8, 8))).astype(np.uint8)
            _label_map(kind, labels).save(folder / kind / "masks" / f"{number}{options.get('mask_suffix', '.png')}")
    plugin_manager()
    return [folder / kind for kind in KINDS]


def _label_map(kind: str, labels: np.ndarray) -> PIL.Image.Image:
    """Labels 0, 1 and 2 in the form of one kind."""
    if kind == "bits16":
        return PIL.Image.fromarray(labels.astype(np.uint16))
    if kind == "one_bit":
        return PIL.Image.fromarray(labels > 0)
    if kind == "binary":
        return PIL.Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8))
    if kind == "colors":
        return PIL.Image.fromarray(np.array(list(COLORS.values()), np.uint8)[labels])
    if kind == "values":
        return PIL.Image.fromarray(np.array([0, 128, 255], np.uint8)[labels])
    labels[:3] = IGNORE
    image = PIL.Image.fromarray(labels)
    if kind == "palette_png":
        image.putpalette(np.arange(768) % 251)
    return image


def mutate(rng: Random, folder: Path) -> None:
    masks = sorted((folder / "masks").iterdir())
    if rng.random() < 0.4:
        mutate_image(rng, rng.choice(masks))
    if rng.random() < 0.6:
        for path in masks if rng.random() < 0.3 else [rng.choice(masks)]:
            _change_pixels(rng, path)
    if rng.random() < 0.4:
        options = json.loads((folder / "options.json").read_text())
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.5 or not isinstance(options, dict):
                options = change_tree(rng, options)
            else:
                _change_options(rng, options)
        (folder / "options.json").write_bytes(dump(options))


def run(folder: Path) -> None:
    path = _write_pipeline(folder)
    source = build_sources(load_pipeline(str(path)), plugin_manager(), "train")["fuzz"]
    for line in source.problems():
        require(len(line.splitlines()) == 1, f"a problem of more than one line: {line!r}")
    masks = {path.stem: path for path in (folder / "masks").iterdir()}
    for index in range(len(source)):
        sample = source.load(index, source.tasks)
        if "semantic" not in sample.targets:
            continue
        target, count = sample.targets["semantic"], len(source.labels["semantic"])
        require(isinstance(target, SemanticTarget), f"a target of type {type(target).__name__}")
        labels = target.labels.numpy()  # type: ignore[attr-defined]
        require(
            labels.dtype == np.uint8 and labels.shape == sample.info.size, f"{labels.dtype} of shape {labels.shape}"
        )
        present = set(np.unique(labels).tolist())
        require(present <= {*range(count), IGNORE}, f"labels {sorted(present)} of {count} classes")
        again = source.targets(index, ["semantic"])["semantic"]
        require(torch.equal(again.labels, target.labels), "targets() and load() differ")  # type: ignore[attr-defined]
        _compare_with_pil(folder, masks.get(Path(sample.info.path).stem), labels)


def command(folder: Path) -> list[str]:
    return ["validate", str(_write_pipeline(folder)), "--all-images"]


@functools.cache
def plugin_manager() -> PluginManager:
    return PluginManager()


def _write_pipeline(folder: Path) -> Path:
    """The pipeline with the source in flow style, of which JSON is a part."""
    options = (folder / "options.json").read_text()
    places = json.dumps({"name": "folder", "images": str(folder / "images"), "masks": str(folder / "masks")})[1:-1]
    split = '"train": {}, "val": {}'
    source = "{" + f"{places}, {split}" + (", " + options[1:] if options.startswith('{"') else "}")
    path = folder / "pipeline.yaml"
    path.write_text(PIPELINE.format(source=source))
    return path


def _compare_with_pil(folder: Path, path: Path | None, labels: np.ndarray) -> None:
    """Labels must be what the pixels say, where the arguments are those of a seed and PIL reads the file."""
    options = json.loads((folder / "options.json").read_text())
    kind = next((kind for kind, arguments in KINDS.items() if arguments == options), None)
    try:
        with warnings.catch_warnings(), PIL.Image.open(str(path)) as image:
            warnings.simplefilter("ignore")
            mode, pixels, exif = image.mode, np.array(image), image.getexif()
    except Exception:
        return
    if exif.get(0x0112, 1) != 1:
        return
    if kind == "colors" and mode == "RGB":
        code = pixels.astype(np.int64) @ (1, 256, 65536)
        expected = np.full(code.shape, IGNORE)
        for label, color in enumerate(COLORS.values()):
            expected[code == np.array(color) @ (1, 256, 65536)] = label
    elif kind == "values" and mode in ("L", "P"):
        expected = np.full(256, -1)
        expected[[0, 128, 200, 255]] = 0, 1, 2, IGNORE
        expected = expected[pixels]
    elif kind in ("indices", "palette_png", "tiff", "bits16") and mode in ("L", "P", "I;16"):
        expected = pixels.astype(np.int64)
    else:
        return
    require(np.array_equal(labels, expected), f"{mode}: other labels than the pixels of {path} say")


def _change_pixels(rng: Random, path: Path) -> None:
    """Values that are no class, colors that are off by one, another mode, size or format, or no file."""
    try:
        with PIL.Image.open(path) as image:
            image.load()
    except Exception:  # an earlier change damaged it
        return
    form = rng.randrange(9)
    pixels = np.array(image)
    if form <= 2:
        value = rng.choice((3, 4, 7, 128, 200, 254, 255, 1, 0))
        rows = slice(8, rng.choice((9, 12, 40)))
        pixels[rows, 8:16] = value if pixels.ndim == 2 else (value, rng.randrange(256), 5)
    elif form == 3 and pixels.ndim == 3:
        pixels = (pixels.astype(int) + rng.choice((-1, 1, 2, 8))).clip(0, 255).astype(np.uint8)
    elif form == 4:
        pixels = np.where(pixels == pixels.flat[0], 255, 0).astype(np.uint8)
    elif form == 5:
        image = image.resize(rng.choice(((47, 40), (40, 48), (1, 1), (96, 80))), PIL.Image.Resampling.NEAREST)
        pixels = np.array(image)
    elif form == 6:
        image.convert(rng.choice(("RGB", "RGBA", "LA", "L", "P", "1"))).save(path)
        return
    elif form == 7:
        image.convert("RGB").save(path, rng.choice(("JPEG", "WEBP", "BMP", "TIFF", "GIF")))
        return
    else:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
        return
    palette = image.getpalette()
    changed = PIL.Image.fromarray(pixels)
    if palette is not None and changed.mode == "L":
        changed.putpalette(palette)
    changed.save(path)


def _change_options(rng: Random, options: dict[str, Any]) -> None:
    """Arguments that contradict each other or the label maps."""
    key, values = rng.choice((
        ("classes", (["a"], ["a", "a", "b"], [], ["a", "b", "c", "d"], [str(i) for i in range(300)], ["b", "a",
         "c"], None, [""])),
        ("ignore", (0, 1, 254, 255, -1, 256, 65535, 2**40, None, "auto", "none", 1.5, True)),
        ("palette", ({"a": [0, 0, 0]}, {"a": [0, 0], "b": [1, 2, 3]}, {"a": [300, -1, 0]}, {"a": [0, 0, 0],
         "b": [0, 0, 0]},
                     {"a": [0.5, 1, 1]}, {}, {"": [1, 2, 3]}, dict.fromkeys("abc", COLORS["b"]), None)),
        ("values", ({"0": "a", "255": "b"}, {"-1": "a"}, {"70000": "a", "0": "b"}, {"x": "a"}, {"0": None}, {},
         {"1.5": "a"},
                    {"0": "a", "1": "a", "2": "a", "255": "a"}, {"0": 1}, {Raw("99999999999999999999"): "a"},
                    {"0": "z"}, None)),
        ("ignore_colors", ([[0, 0, 0]], [[1, 2]], [], [[300, 0, 0]], [["a"]], None)),
        ("mask_suffix", (".png", "", ".", ".PNG", "g", ".tif", "/x.png")),
        ("image_suffix", (".jpg", "", ".png", "0.jpg", None)),
        (rng.choice(("labels", "heads", "weight", "transforms", "tasks", "extra")), VALUES),
    ))  # fmt: skip
    options[key] = rng.choice(values)
