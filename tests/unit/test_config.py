"""Pipelines from YAML: what is accepted, and what is said of mistakes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from visionkit.config import TrainConfig, load_pipeline, parse_pipeline, shipped_pipelines, summary_of
from visionkit.config.arguments import signature_schema
from visionkit.config.check import Finding, conform
from visionkit.errors import PipelineError

TEXT = """\
backbone: {name: timm, model: resnet18}
neck: fpn
heads:
  seg:
    name: semantic_fpn
    channels: 64
    labels: [sky, no, "1e3"]
  boxes: rcnn
  masks:
    name: roi_mask
    reads: {boxes: boxes}
sources:
  street:
    name: coco
    root: data
    train: {annotations: a.json}
    val: {annotations: b.json}
    heads: [boxes]
    labels: {car: vehicle, tree: null}
    transforms: [hflip, {name: resize, short: 100}]
train:
  steps: 20
  optimizer: {lr: 1e-3}
  parts: {heads.seg: {lr_scale: 0.5}}
evaluate:
  metrics: {seg: [semantic]}
"""


def said(text: str, *overrides: str) -> str:
    with pytest.raises(PipelineError) as error:
        parse_pipeline(text, "my.yaml", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_pipeline_in_full() -> None:
    p = parse_pipeline(TEXT, "some/where/my.yaml")
    assert (p.name, p.path) == ("my", "some/where/my.yaml")
    assert p.backbone is not None
    assert p.neck is not None
    assert (p.backbone.name, p.backbone.args) == ("timm", {"model": "resnet18"})
    assert (p.neck.name, p.neck.args, p.neck.at) == ("fpn", {}, ("neck",))
    assert p.heads["seg"].args == {"channels": 64}
    assert p.heads["seg"].labels == ["sky", "no", "1e3"]
    assert p.heads["masks"].reads == {"boxes": "boxes"}
    street = p.sources["street"]
    assert street.args == {"root": "data"}
    assert street.labels == {"car": "vehicle", "tree": None}
    assert street.transforms is not None
    assert [(t.name, t.args, t.at) for t in street.transforms] == [
        ("hflip", {}, ("sources", "street", "transforms", 0)),
        ("resize", {"short": 100}, ("sources", "street", "transforms", 1)),
    ]
    assert street.eval_transforms is None
    train = street.split("train")
    assert train is not None
    assert train.args == {"root": "data", "annotations": "a.json"}
    assert (p.train.steps, p.train.optimizer.lr, p.train.optimizer.name) == (20, 0.001, "sgd")
    assert p.train.parts["heads.seg"].lr_scale == 0.5
    assert p.train.balancer.name == "fixed"
    assert p.evaluate.metrics["seg"][0].name == "semantic"
    assert p.evaluate.pictures == 8


def test_only_heads_are_owed() -> None:
    p = parse_pipeline("heads: {a: x}\ntrain:\n")
    assert p.train == TrainConfig()
    assert p.sources == {}
    assert p.backbone is None


@pytest.mark.parametrize("text", [TEXT, "heads: {a: x}", "heads: {a: {name: x, k: .inf, s: '${X', t: 'on', u: '012'}}"])
def test_yaml_of_a_pipeline_loads_to_the_same(text: str) -> None:
    p = parse_pipeline(text)
    again = parse_pipeline(p.to_yaml(), "elsewhere.yaml")
    assert again == p
    assert again.to_yaml() == p.to_yaml()


def test_shipped_pipelines_are_found_by_name_and_hold_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of that name is no pipeline
    assert "demo" in shipped_pipelines()
    for name, file in shipped_pipelines().items():
        p = load_pipeline(name)
        assert p.name == Path(name).name
        assert 20 < len(summary_of(file)) < 150, f"the top of {file.name} says what it is"
        assert parse_pipeline(p.to_yaml()) == p
    with pytest.raises(PipelineError, match=r"no pipeline 'dmeo'.*did you mean 'demo'\?; 'visionkit pipelines' lists"):
        load_pipeline("dmeo")


def test_a_file_is_found_by_path(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TEXT)
    assert load_pipeline(str(tmp_path / "a.yaml")) == parse_pipeline(TEXT)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(PipelineError, match=r"b.yaml: cannot be read"):
        load_pipeline(str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train:\n  steps", "trian:\n  steps", "my.yaml:21: unknown key 'trian' in the pipeline; did you mean 'train'"),
        ("  steps: 20", "  stesp: 20", "my.yaml:22: unknown key 'stesp' in train; did you mean 'steps'? allowed: st"),
        ("steps: 20", "steps: many", "my.yaml:22: train.steps: expected an integer, not the text 'many'"),
        ("steps: 20", "steps: '20'", "my.yaml:22: train.steps: expected an integer, not the text '20'"),
        ("steps: 20", "steps: 2.5", "my.yaml:22: train.steps: expected an integer, not 2.5"),
        ("steps: 20", "steps: 0", "my.yaml:22: train.steps: expected at least 1, not 0"),
        ("steps: 20", "channels_last: 1", "my.yaml:22: train.channels_last: expected true or false, not 1"),
        ("steps: 20", "channels_last: yes", "my.yaml:22: train.channels_last: expected true or false, not the text"),
        ("{lr: 1e-3}", "{name: sdg}", "my.yaml:23: train.optimizer.name: expected 'sgd' or 'adamw', not the text "
         "'sdg'; did you mean 'sgd'?"),
        ("{lr: 1e-3}", "{betas: [0.9]}", "my.yaml:23: train.optimizer.betas: expected at least 2 items, not [0.9]"),
        ("{lr: 1e-3}", "{betas: [0.9, 1, 2]}", "expected at most 2 items, not [0.9, 1, 2]"),
        ("{lr_scale: 0.5}", "{lr: 3}", "unknown key 'lr' in train.parts.heads.seg; did you mean 'lr_scale'?"),
        ("name: semantic_fpn", "nam: semantic_fpn", "my.yaml:4: missing key 'name' in heads.seg"),
        ("  boxes: rcnn", "  boxes: 3", "my.yaml:8: heads.boxes: expected a mapping, not 3"),
        ("  boxes: rcnn", "  boxes: {name: [a]}", "my.yaml:8: heads.boxes.name: expected text, not [\"a\"]"),
        ("{boxes: boxes}", "{boxes: boxs}", "my.yaml:11: no head 'boxs'; did you mean 'boxes'? (heads: seg, boxes"),
        ("[boxes]", "[seg, box]", "my.yaml:18: no head 'box'; did you mean 'boxes'?"),
        ("{seg: [semantic]}", "{sge: [semantic]}", "my.yaml:26: no head 'sge'; did you mean 'seg'?"),
        ("{seg: [semantic]}", "{seg: semantic}", "my.yaml:26: evaluate.metrics.seg: expected a list, not the text"),
        ("heads.seg: {", "heads.sge: {", "my.yaml:24: no head 'sge'; did you mean 'seg'?"),
        ("heads.seg: {", "seg: {", "my.yaml:24: no part 'seg'"),
        ("  boxes: rcnn", "  ../x: rcnn", "my.yaml:8: '../x' is no name for one of the heads"),
        ("  boxes: rcnn", "  seg: rcnn", "my.yaml:8: key 'seg' is given twice (first at my.yaml:4)"),
        ("  boxes: rcnn", "  boxes: [", "not valid YAML"),
        ("  boxes: rcnn", "  boxes: !!python/name:os.system ''", "my.yaml:8: tag "),
        ("  boxes: rcnn", "  boxes: &a {name: rcnn, again: *a}", "my.yaml:8: "),
        ("    train: {annotations: a.json}\n    val: {annotations: b.json}\n", "",
         "my.yaml:13: source 'street' has neither 'train' nor 'val'"),
        ("backbone: {name: timm, model: resnet18}", "", "my.yaml:2: a neck needs a backbone"),
    ],
)  # fmt: skip
def test_mistakes_name_line_key_and_what_is_allowed(old: str, new: str, message: str) -> None:
    assert old in TEXT
    assert message in said(TEXT.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with the keys backbone, neck, heads, sources, train, evaluate"),
        ("- a", "expected a mapping with the keys"),
        ("train: {steps: 3}", "missing key 'heads' in the pipeline"),
        ("heads: {}", "my.yaml:1: a pipeline needs at least one head"),
        ("heads: [a]", 'my.yaml:1: heads: expected a mapping, not ["a"]'),
        ("heads: {a: x}\npath: y", "my.yaml:2: unknown key 'path' in the pipeline; allowed: backbone"),
        ("heads: {a: x}\n? [b]\n: 3", "my.yaml:2: a key must be text"),
        ("heads: {a: x}\n---\nheads: {a: x}", "my.yaml:2: not valid YAML"),
        ("heads: {a: x\x00}", "my.yaml: not valid YAML"),
    ],
)
def test_mistakes_at_the_top(text: str, message: str) -> None:
    assert message in said(text)


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", "/data: x")
    monkeypatch.setenv("CHANNELS", "32")
    lines = ["heads:", "  a:", "    name: x", '    root: "${ROOT}/y"', "    n: ${CHANNELS}", '    t: "${CHANNELS}"']
    text = "\n".join([*lines, "    d: ${NO_SUCH:-7}"])
    assert parse_pipeline(text).heads["a"].args == {"root": "/data: x/y", "n": 32, "t": "32", "d": 7}
    assert "my.yaml:7: environment variable NO_SUCH is not set" in said(text.replace(":-7", ""))
    assert parse_pipeline("heads: {a: {name: x, s: $HOME, t: ~/a, u: '$(ls)'}}").heads["a"].args == {
        "s": "$HOME", "t": "~/a", "u": "$(ls)"
    }  # fmt: skip


def test_environment_variables_in_flow_style_are_one_scalar_each(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "LR": "1e-3",
        "STEPS": "7",
        "FLAG": "true",
        "PATTERN": "a}, b: {c: 1",
        "LINES": "1\nheads: 2",
        "QUOTE": "'",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    head = "heads: {a: {name: x, v: [${LR}, '${LR}', ${PATTERN}, \"${PATTERN}\", ${LINES}, ${QUOTE}, n${STEPS}m]}}"
    text = head + "\n# ${NO_SUCH}: in a comment\ntrain: {steps: ${STEPS}, optimizer: {lr: ${LR}}}"
    p = parse_pipeline(text)
    assert p.heads["a"].args["v"] == [0.001, "1e-3", *[values["PATTERN"]] * 2, values["LINES"], "'", "n7m"]
    assert (p.train.steps, p.train.optimizer.lr) == (7, 0.001)
    assert parse_pipeline(head.replace("${LR}", "${NO_SUCH:-x, y: z}", 1)).heads["a"].args["v"][0] == "x, y: z"
    assert parse_pipeline('heads: {a: {name: x, v: "${NO_SUCH:-a\\tb}"}}').heads["a"].args == {"v": "a\tb"}
    assert "my.yaml:3: environment variable NO_SUCH is not set" in said(
        text.replace("steps: ${STEPS}", "steps: ${NO_SUCH}")
    )
    assert "my.yaml:3: train.steps: expected an integer, not the text 'a}, b: {c: 1'" in said(
        text.replace("steps: ${STEPS}", "steps: ${PATTERN}")
    )
    assert "my.yaml:1: '${STEPS-1}' is not an environment variable" in said(text.replace("${STEPS}", "${STEPS-1}"))
    assert "my.yaml:1: a key cannot hold an environment variable" in said(text.replace("v:", "${LR}:"))
    assert "my.yaml:1: not valid YAML" in said(text.replace("[${LR}", "*${LR}"))
    monkeypatch.setenv("LR", "\udcff")
    assert "my.yaml:1: environment variable LR is not valid UTF-8" in said(text)


def test_quoted_environment_variables_are_numbers_where_text_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Head:
        def __init__(self, spec: Any, labels: Any, *, size: int, tag: str, ratios: Sequence[float] = ()) -> None:
            pass

    monkeypatch.setenv("SIZE", "16")
    text = "heads: {a: {name: x, size: '${SIZE}', tag: '${SIZE}', ratios: ['${SIZE}']}}\ntrain: {clip: '${SIZE}'}"
    p = parse_pipeline(text)
    assert p.train.clip == 16.0
    schema = signature_schema("head", Head)
    for _ in range(2):  # arguments are checked first, and once more where the component is built
        arguments = conform(TypeAdapter(schema), schema, p.heads["a"].args, "head 'a'")
        assert arguments == {"size": 16, "tag": "16", "ratios": [16.0]}
    monkeypatch.delenv("SIZE")  # a run is loaded without the environment that it was started in
    assert parse_pipeline(p.to_yaml()).heads["a"].args == {"size": 16, "tag": "16", "ratios": [16]}
    with pytest.raises(Finding, match="expected an integer, not the text '16'"):
        conform(TypeAdapter(schema), schema, {"size": "16", "tag": ""}, "head 'a'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads: " + "[" * 3000, "my.yaml: values are nested too deeply"),
        ("heads: " + "[" * 220 + "]" * 220, "values are nested too deeply"),
        ("heads:\n  a: {name: x, v: " + "9" * 5000 + "}", "my.yaml:2: an integer of 5,000 digits"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
            f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdef", "bcdefg")),
         "more than 200,000 values, counting each repetition of an alias"),
        ("#" * 1_000_001, "my.yaml: 1,000,001 characters; at most 1,000,000 are read"),
        (f"heads: {{{'a' * 300}: x}}", "my.yaml:1: a key of more than 200 characters: 'aaa"),
        ("heads:\n\ta: x", "my.yaml:2: not valid YAML: found character '\\t'"),
    ],
)  # fmt: skip
def test_texts_beyond_all_bounds_are_one_line(text: str, message: str) -> None:
    error = said(text)
    assert message in error
    assert len(error.splitlines()) == 1
    assert len(error) < 500


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="that is a folder, and none of that name is shipped"):
        load_pipeline(str(tmp_path))
    for name in ("x" * 5000, "a\0b", ""):
        with pytest.raises(PipelineError, match="there is no such file"):
            load_pipeline(name)


@pytest.mark.parametrize(
    ("override", "reach", "value"),
    [
        ("train.steps=7", lambda p: p.train.steps, 7),
        ("train.warmup.steps=7", lambda p: p.train.warmup.steps, 7),
        ("train.optimizer={name: adamw}", lambda p: (p.train.optimizer.name, p.train.optimizer.lr), ("adamw", 0.01)),
        ("train.parts.heads.seg.freeze=true", lambda p: p.train.parts["heads.seg"].freeze, True),
        ("backbone.out=[1, 2]", lambda p: p.backbone.args["out"], [1, 2]),
        ("neck.channels=64", lambda p: (p.neck.name, p.neck.args), ("fpn", {"channels": 64})),
        ("neck=null", lambda p: p.neck, None),
        ("heads.boxes.text=a=b", lambda p: p.heads["boxes"].args["text"], "a=b"),
        ("heads.extra={name: rcnn}", lambda p: p.heads["extra"].name, "rcnn"),
        ("sources.street.transforms.0.p=.5", lambda p: p.sources["street"].transforms[0].args, {"p": 0.5}),
        ("sources.street.val.annotations=c.json", lambda p: p.sources["street"].val, {"annotations": "c.json"}),
    ],
)
def test_overrides(override: str, reach, value: object) -> None:  # type: ignore[no-untyped-def]
    assert reach(parse_pipeline(TEXT, overrides=[override])) == value


def test_later_overrides_build_on_earlier_ones() -> None:
    p = parse_pipeline(TEXT, overrides=["heads.more=rcnn", "heads.more.n=1", "train.parts={}", "train.clip=1"])
    assert p.heads["more"].args == {"n": 1}
    assert p.train.clip == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=3", "--set trian.steps=3: unknown key 'trian' in the pipeline; did you mean 'train'?"),
        ("train.stesp=3", "--set train.stesp=3: unknown key 'stesp' in train; did you mean 'steps'?"),
        (
            "train.optimiser.lr=3",
            "--set train.optimiser.lr=3: unknown key 'optimiser' in train; did you mean 'opt",
        ),
        ("train.steps=abc", "--set train.steps=abc: train.steps: expected an integer, not the text 'abc'"),
        ("train.steps.x=1", "--set train.steps.x=1: train.steps is a value and holds no key 'x'"),
        ("heads.sge.x=1", "--set heads.sge.x=1: no head 'sge'; did you mean 'seg'? (heads: seg, boxes, masks)"),
        ("sources.x.y=1", "--set sources.x.y=1: no source 'x' (sources: street)"),
        ("sources.street.transforms.4.x=1", "sources.street.transforms is a list of 2; expected an index below that"),
        ("heads.seg.reads={a: nope}", "--set heads.seg.reads={a: nope}: no head 'nope'"),
        ("train.clip=[", "--set train.clip=[: not valid YAML"),
        ("train.clip=${NO_SUCH}", "--set train.clip=${NO_SUCH}: environment variable NO_SUCH is not set"),
        ("train.steps", "--set train.steps: expected path.to.key=value"),
        ("train..steps=1", "expected path.to.key=value"),
    ],
)
def test_mistakes_in_overrides_name_the_option(override: str, message: str) -> None:
    assert message in said(TEXT, override)


def test_fail_names_the_nearest_key_that_is_known() -> None:
    p = parse_pipeline(TEXT, "my.yaml", ["heads.boxes={name: y}"])
    assert str(p.fail(("heads", "seg", "channels"), "too many")) == "my.yaml:6: too many"
    assert str(p.fail(("heads", "seg", "dropout", 0), "no")) == "my.yaml:4: no"
    assert str(p.fail(("heads", "boxes", "name"), "no")) == "--set heads.boxes={name: y}: no"


def test_configs_import_no_torch() -> None:
    import subprocess

    code = "import visionkit.config, sys; assert not {'torch', 'cv2', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
