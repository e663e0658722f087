"""Pipelines: loading YAML and overrides, checking every component's arguments, and building a small model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz.mutations import NUMBERS, STRINGS, VALUES, Raw, change_text, change_tree, dump
from tests.fuzz.surfaces.coco import require
from tests.fuzz.surfaces.label_maps import plugin_manager
from visionkit.config import check_arguments, check_names, load_pipeline, parse_pipeline, shipped_pipelines
from visionkit.data.shapes import write_shapes
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.model.build import build_model

SMALL = """\
# Every section, as small as it can be.
backbone: {name: timm, model: resnet18, options: {channels: [8, 8, 16, 16]}}
neck: {name: fpn, channels: 16}
heads:
  semantic: {name: semantic_fpn, channels: 16}
  boxes:
    name: rcnn
    anchor_sizes: [[8], [16], [32], [48], [64]]
    canonical_size: 56
    fcs: [16]
    rpn_before_nms_train: 50
    rpn_after_nms_train: 30
    samples: 16
    detections: 10
  masks: {name: roi_mask, convs: [8], canonical_size: 56}
sources:
  things:
    name: coco
    heads: [boxes, masks]
    labels: {circle: circle, star: null}
    train: {images: FOLDER/images, annotations: FOLDER/instances.json}
    val: {images: FOLDER/images, annotations: FOLDER/instances.json, on_error: skip}
  stuff:
    name: folder
    weight: 0.5
    train: {images: FOLDER/images, masks: FOLDER/semantic, classes: [a, b, c, d, e, f, g, h, i]}
train:
  steps: 2
  batch_size: 2
  optimizer: {name: sgd, lr: 0.01}
  schedule: {name: cosine, final: 0.01}
  warmup: {steps: 2, factor: 0.1}
  clip: 10.0
  ema: 0.9
  workers: 0
  balancer: {name: fixed, weights: {semantic: 2.0}}
  transforms: [hflip, {name: resize, short: 48}]
evaluate:
  batch_size: 2
  metrics: {boxes: [coco_bbox]}
"""
OVERRIDES = (
    "train.steps=3",
    "train.transforms=[]",
    "heads.boxes.samples=8",
    "backbone.model=resnet34",
    "train.ema=null",
)
YAML_VALUES = (
    *("yes", "no", "on", "~", "null", "1e400", ".inf", "-.inf", ".nan", "0x1F", "0o17", "1_000", "1:30", "2020-01-01"),
    *("=", "<<", "''", '""', "'a", '"\\x00"', '"\\ud800"', '"\\U0010ffff"', "|", ">", "|2\n", "- a", "? a", "[", "]"),
    *("{", "}", "@", "`", "&a b", "*a", "!!python/object:os.system x", "!!python/name:os.system", "!!binary aGk="),
    *(
        "!!set {a}",
        "!x y",
        "!!int x",
        "!!float abc",
        "!!null x",
        "!!bool maybe",
        "!<tag:yaml.org,2002:int> 1",
        "${HOME}",
    ),
    *("${}", "${NOT_SET_ANYWHERE}", "${A:-1}", "${A:-}", "${A:-[1, 2]}", "${A:-x: y}", "'${A:-1}'", "$HOME", "${A"),
    *("%YAML 1.1", "# x", "\t1", "1\t", "\0", "\x07", "\x85", "\u2028", "\ufeff", "9" * 5000, "9" * 400 + ".5"),
    *("-" * 3000, "[" * 2000 + "]" * 2000, "{a: " * 1500 + "1" + "}" * 1500, "torch:Tensor", "os:system", "nothing:X"),
    *("visionkit.data:CocoSource", ":", "a:", "../x.py:X", "a b"),
)
YAML_LINES = (
    *("extra: 1", "name: x", "\tx: 1", "  x: 1", "- 1", "x", "<<: {a: 1}", "<<: *a", "<<: [1]", "? {a: b}\n: 1"),
    *("? [a]\n: 1", "1: 2", "null: 1", "true: 1", "1.5: x", "'': 1", '"a.b": 1', "---", "...", "%YAML 1.2", "%TAG ! x"),
    *("--- x", "&a x: *a", "a: &a [*a]", "a: &a {b: *a}", "a: &a 1", "train: {}", "heads: {}", "heads: null"),
    *("k" * 300 + ": 1", "${HOME}: 1", "\0"),
)


def seeds(folder: Path) -> list[Path]:
    """A small pipeline with its data, and the shipped pipelines, whose data is not there."""
    small = folder / "small"
    write_shapes(str(small), 2, 0, (48, 64))
    for name in ("panoptic", "panoptic.json", "parameters.json"):
        path = small / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (small / "pipeline.yaml").write_text(SMALL)
    out = []
    for name, file in shipped_pipelines().items():
        text = file.read_text()
        if "name: shapes" not in text:  # which would be drawn
            (folder / name).mkdir()
            (folder / name / "pipeline.yaml").write_text(text)
            out.append(folder / name)
            check_arguments(load_pipeline(str(file)), plugin_manager())  # imports the components before the fork
    return out + [small] * len(out)


def mutate(rng: Random, folder: Path) -> None:
    path = folder / "pipeline.yaml"
    text = path.read_text()
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.5:
            text = rng.choice(YAML_CHANGES)(rng, text)
        else:
            text = _change_tree(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(change_text(rng, data) if rng.random() < 0.1 else data)
    if rng.random() < 0.3:
        key, _, value = rng.choice(OVERRIDES).partition("=")
        new = rng.choice(
            (value, str(rng.choice(NUMBERS)), str(rng.choice(STRINGS)), json.dumps(rng.choice((None, [], {}))))
        )
        override = rng.choice((f"{key}={new}", f"{key}={new}", f"{key}.x={new}", key, f"={new}", f"{key[1:]}={new}"))
        (folder / "overrides.json").write_text(
            json.dumps([override.replace("\0", "").encode("ascii", "replace").decode()])
        )


def run(folder: Path) -> None:
    path = _pipeline_file(folder)
    pipeline = load_pipeline(str(path), _overrides(folder))
    plugins = plugin_manager()
    check_names(pipeline, plugins)
    check_arguments(pipeline, plugins)
    text = pipeline.to_yaml()
    again = parse_pipeline(text).to_yaml()
    require(again == text, f"a pipeline that is written and read is another one:\n{text}\n{again}")
    if (folder / "images").is_dir():
        sources = {**build_sources(pipeline, plugins, "val"), **build_sources(pipeline, plugins, "train")}
        labels = resolve_labels(pipeline, plugins, sources)
        build_model(pipeline, plugins, labels)
        build_feeds(pipeline, plugins, sources, labels, training=True)


def command(folder: Path) -> list[str]:
    overrides = [part for override in _overrides(folder) for part in ("--set", override)]
    return ["validate", str(_pipeline_file(folder)), *overrides]


def _overrides(folder: Path) -> list[str]:
    path = folder / "overrides.json"
    return json.loads(path.read_text()) if path.exists() else []


def _pipeline_file(folder: Path) -> Path:
    """The pipeline, with the folder that its data lies in."""
    path = folder / "pipeline.yaml"
    path.write_bytes(path.read_bytes().replace(b"FOLDER", str(folder).encode()))
    return path


def _change_tree(rng: Random, text: str) -> str:
    """A change to the values, written in block style or, with values that YAML cannot write, in flow style."""
    if "&" in text:  # aliases of aliases, which would be written in full
        return text
    try:
        tree = change_tree(rng, yaml.safe_load(text))
        if rng.random() < 0.5 and not _holds_raw(tree):
            return yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5)
        return dump(tree).decode()
    except Exception:  # PyYAML raises many; an earlier change left no valid YAML
        return text


def _holds_raw(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_raw, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Raw)


def _insert(rng: Random, text: str, new: str) -> str:
    """``new`` as a line of its own, as deep as the line before it."""
    lines = text.splitlines()
    at = rng.randrange(len(lines) + 1)
    indent = re.match(" *", lines[at - 1] if at else "")
    return "\n".join([*lines[:at], (indent[0] if indent else "") + new, *lines[at:]]) + "\n"


def _value(rng: Random, text: str, new: str) -> str:
    """``new`` in place of the value of a key."""
    matches = list(re.finditer(r"(?<=: )[\w.-]+|(?<=\[)[\w.-]+", text))
    if not matches:
        return text + new
    match = rng.choice(matches)
    return text[: match.start()] + new + text[match.end() :]


def _laughs(rng: Random, text: str) -> str:
    """Aliases of aliases, which grow without bound when they are resolved."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, rng.choice((3, 9, 12)))]
    if rng.random() < 0.5:
        rows = [
            f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" if i else row
            for i, row in enumerate(rows)
        ]
    return rng.choice(("\n".join(rows) + "\n" + text, text + "\n".join(rows) + "\n"))


def _plain_value(rng: Random, text: str) -> str:
    return _value(rng, text, rng.choice(YAML_VALUES))


def _new_line(rng: Random, text: str) -> str:
    return _insert(rng, text, rng.choice(YAML_LINES))


def _lines(rng: Random, text: str) -> str:
    """A line that is deleted, repeated, moved, or indented otherwise; a key that is spelled otherwise."""
    lines = text.splitlines()
    if not lines:
        return text
    at = rng.randrange(len(lines))
    changes: tuple[Callable[[], Any], ...] = (
        lambda: lines.pop(at),
        lambda: lines.insert(rng.randrange(len(lines) + 1), lines[at]),
        lambda: lines.insert(at, lines.pop(rng.randrange(len(lines)))),
        lambda: lines.__setitem__(at, rng.choice((" ", "   ", "\t")) + lines[at]),
        lambda: lines.__setitem__(at, lines[at].strip()),
        lambda: lines.__setitem__(at, lines[at].replace(":", rng.choice((" ", "=", "::", ":\n", " :")), 1)),
        lambda: lines.__setitem__(at, re.sub(r"(\w)(\w+):", r"\2\1:", lines[at], count=1)),
        lambda: lines.__setitem__(at, lines[at].upper()),
    )
    rng.choice(changes)()
    return "\n".join(lines) + "\n"


def _value_of_pool(rng: Random, text: str) -> str:
    return _value(rng, text, dump(rng.choice(VALUES)).decode())


YAML_CHANGES = (_plain_value, _plain_value, _value_of_pool, _new_line, _new_line, _lines, _laughs)
