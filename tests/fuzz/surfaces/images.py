"""Image files, as sources and ``predict`` read them."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from tests.fuzz.harness import WrongResult
from tests.fuzz.images import PNG, mutate_image, png_chunk, png_chunks
from tests.fuzz.surfaces.coco import require
from visionkit.config import Pipeline
from visionkit.config.load import parse_pipeline
from visionkit.data.folder import FolderSource
from visionkit.data.images import read_image
from visionkit.data.scenes import draw_scene
from visionkit.data.wiring import resolve_labels
from visionkit.infer import Predictor
from visionkit.model.build import build_model
from visionkit.model.graph import MultiTaskModel
from visionkit.model.run import write_run
from visionkit.plugins import PluginManager
from visionkit.types import LabelSet

PIPELINE = """\
backbone: {name: unet_encoder, width: 4, norm: batch, dropout: 0.0}
heads:
  semantic: {name: unet, levels: [c4, c3, c2, c1, c0], norm: batch, labels: [a, b]}
sources: {}
"""
MOST_PIXELS = 2_000_000  # of an image that the model is run on here
LOSSLESS = ("PNG", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def seeds(folder: Path) -> list[Path]:
    """One synthetic scene in many formats, depths and color types, with every EXIF orientation."""
    scene = draw_scene(np.random.default_rng(0), 40, 56).image
    rgb = PIL.Image.fromarray(scene)
    gray = rgb.convert("L")
    deep = np.asarray(gray, np.uint16) * 257
    files: dict[str, bytes] = {}

    def save(name: str, image: PIL.Image.Image, **options: Any) -> None:
        out = io.BytesIO()
        image.save(out, PIL.Image.registered_extensions()[Path(name).suffix], **options)
        files[name] = out.getvalue()

    for mode in ("RGB", "L", "CMYK"):
        save(f"{mode}.jpg", rgb.convert(mode), quality=90)
    save("progressive.jpg", rgb, progressive=True, optimize=True)
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        save(f"exif{orientation}.jpg", rgb, exif=exif)
        if orientation in (3, 6):
            save(f"exif{orientation}.webp", rgb, exif=exif)
            save(f"exif{orientation}.tif", rgb, exif=exif)
            files[f"exif{orientation}.png"] = _with_exif(rgb, exif)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        save(f"{mode}.png", rgb.convert(mode))
        save(f"{mode}.tif", rgb.convert(mode))
    for mode in ("RGB", "L", "P", "1"):
        save(f"{mode}.bmp", rgb.convert(mode))
    save("RGB.webp", rgb, quality=90)
    save("lossless.webp", rgb.convert("RGBA"), lossless=True)
    save("animated.webp", rgb, save_all=True, append_images=[rgb, rgb])
    save("lzw.tif", rgb, compression="tiff_lzw")
    save("pages.tif", rgb, save_all=True, append_images=[rgb.resize((20, 20))])
    save("float.tif", PIL.Image.fromarray(np.asarray(gray, np.float32) / 255))
    for name, image in (("16.png", deep), ("16.tif", deep), ("16rgb.png", scene.astype(np.uint16) * 257)):
        files[name] = cv2.imencode(Path(name).suffix, image)[1].tobytes()
    for name, data in files.items():
        path = folder / name.replace(".", "_") / "images"
        path.mkdir(parents=True)
        (path / f"image{Path(name).suffix}").write_bytes(data)
    predictor()  # the processes that read inputs get it with the fork
    return [folder / name.replace(".", "_") for name in sorted(files)]


def _with_exif(image: PIL.Image.Image, exif: PIL.Image.Exif) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    chunks = list(png_chunks(out.getvalue()))
    chunks.insert(1, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    return PNG + b"".join(png_chunk(*chunk) for chunk in chunks)


def mutate(rng: Random, folder: Path) -> None:
    path = next((folder / "images").iterdir())
    mutate_image(rng, path)
    if rng.random() < 0.05:  # a suffix that is not that of the format
        path.rename(path.with_suffix(rng.choice(SUFFIXES)))


def run(folder: Path) -> None:
    path = next((folder / "images").iterdir())
    image = read_image(str(path))
    require(image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3, f"{image.dtype} {image.shape}")
    size = (image.shape[1], image.shape[2])
    sample = FolderSource(images=str(folder / "images")).load(0, ())
    require(sample.info.original_size == size and torch.equal(sample.image, image), "the source reads another image")
    _compare_with_pil(path, image.permute(1, 2, 0).numpy())
    if size[0] * size[1] <= MOST_PIXELS:
        for result in predictor().stream([path], on_error="skip"):
            require(result.error is None and result.info.original_size == size, f"predict: {result.error}, not {size}")
            require(tuple(result.predictions["semantic"].labels.shape) == size, "a prediction of another size")  # type: ignore[attr-defined]


def command(folder: Path) -> list[str]:
    pipeline, labels, model = _parts()
    write_run(folder / "run", pipeline, labels, model)
    return ["predict", str(folder / "run"), str(folder / "images"), "--out", str(folder / "out")]


@functools.cache
def _parts() -> tuple[Pipeline, dict[str, LabelSet], MultiTaskModel]:
    """A tiny model, untrained, with what a run folder needs."""
    torch.manual_seed(0)
    plugins = PluginManager()
    pipeline = parse_pipeline(PIPELINE)
    labels = resolve_labels(pipeline, plugins, {})
    return pipeline, labels, build_model(pipeline, plugins, labels)


@functools.cache
def predictor() -> Predictor:
    """The tiny model, ready to predict."""
    _, labels, model = _parts()
    return Predictor(model, labels, channels_last=False)


def _compare_with_pil(path: Path, image: np.ndarray) -> None:
    """The displayed size must be that of PIL, and so must the pixels of a lossless image of 8 bits, if PIL reads it."""
    if path.read_bytes().count(b"Exif\0\0") > 1:
        return  # which of two orientations holds is not defined
    try:
        with warnings.catch_warnings(), PIL.Image.open(path) as opened:
            warnings.simplefilter("ignore")
            if opened.size[0] * opened.size[1] > MOST_PIXELS:
                return
            opened.load()
            shown = PIL.ImageOps.exif_transpose(opened)
            lossless = opened.format in LOSSLESS and opened.mode in ("RGB", "L", "P", "1")
            pixels = np.asarray(shown.convert("RGB"))
    except Exception:  # PIL refuses many damaged files; then there is nothing to compare with
        return
    if image.shape != pixels.shape:
        raise WrongResult(f"{image.shape[:2]} (height, width), but PIL displays {pixels.shape[:2]}")
    if lossless and not np.array_equal(image, pixels):
        difference = int(np.abs(image.astype(int) - pixels).max())
        raise WrongResult(f"{opened.format} {opened.mode}: pixels differ from PIL's by up to {difference}")
