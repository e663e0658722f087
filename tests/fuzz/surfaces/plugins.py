"""Plugin files: descriptors, hooks, classes and everything that their methods return, used through ``--plugin``."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.harness import rehearse
from tests.fuzz.surfaces.coco import require
from visionkit.cli.check import check, components_of
from visionkit.config import load_pipeline
from visionkit.data.shapes import write_shapes
from visionkit.errors import UserError
from visionkit.plugins import PluginManager, plugin_errors
from visionkit.train import train
from visionkit.train.validate import validate

PLUGIN = '''\
"""A head with a metric, a backbone, a source, a transform, a balancer and a logger."""

import torch
from torch import nn

from visionkit import Backbone, Component, Evaluator, Head, Sample, Source, Transform, hookimpl
from visionkit.train.balance import Balancer
from visionkit.layers.semantic import semantic_cross_entropy, semantic_predictions
from visionkit.types import FeatureSpec, ImageInfo, LabelSet, Level, Mean
from visionkit.types import SemanticOutput, SemanticPrediction, SemanticTarget


class Body(Backbone):
    """Two levels.

    Args:
        width: channels.
    """

    def __init__(self, *, levels=None, width: int = 4) -> None:
        super().__init__()
        self.spec = FeatureSpec({"c2": Level(width, 4)})
        self.conv = nn.Conv2d(3, width, 4, 4)

    def forward(self, images):
        return {"c2": self.conv(images)}


class Pixels(Head):
    """A class for every pixel.

    Args:
        width: channels of its hidden layer.
    """

    task = "semantic"
    makes = SemanticPrediction
    output = SemanticOutput
    loss_names = ("entropy",)
    evaluators = ("fuzz_metric",)
    needs = {}
    exportable = True

    def __init__(self, spec: FeatureSpec, labels: LabelSet, *, width: int = 4) -> None:
        super().__init__(spec, labels)
        self.levels = ("c2",)
        self.hidden = nn.Conv2d(spec["c2"].channels, width, 1)
        self.score = nn.Conv2d(width, len(labels), 1)

    def forward(self, features, batch, upstream):
        logits = self.score(self.hidden(features["c2"]).relu())
        return SemanticOutput(logits)

    def losses(self, output, batch):
        return {"entropy": semantic_cross_entropy(output.logits, batch, stride=4)}

    def predict(self, output, batch):
        return semantic_predictions(output.logits, batch, stride=4)

    def phases(self):
        return {"main": list(self.parameters())}

    def problems(self):
        return []


class Accuracy(Evaluator):
    """The share of pixels that are right."""

    reads = SemanticPrediction

    def __init__(self, source: Source, labels: LabelSet) -> None:
        super().__init__(source, labels)
        self.counts = {}

    def add(self, predictions, targets, info):
        for prediction, target, image in zip(predictions, targets, info):
            self.counts[image.id] = int((prediction.labels == target.labels).sum()), target.labels.numel()

    def state(self):
        return self.counts

    def merge(self, states):
        for state in states:
            self.counts.update(state)

    def result(self):
        return {"accuracy": sum(a for a, _ in self.counts.values()) / max(1, sum(b for _, b in self.counts.values()))}


class Stripes(Source):
    """Stripes that are made when they are asked for.

    Args:
        images: how many.
    """

    def __init__(self, *, images: int = 2) -> None:
        self.images = images
        self.labels = {"semantic": LabelSet(("left", "right"))}

    def __len__(self):
        return self.images

    def load(self, index, tasks):
        image = torch.full((3, 32, 32), 100, dtype=torch.uint8)
        labels = torch.zeros(32, 32, dtype=torch.uint8)
        labels[:, 8 * (index % 4) :] = 1
        info = ImageInfo(id=index, path="", original_size=(32, 32), size=(32, 32))
        return Sample(image, info, {"semantic": SemanticTarget(labels)})


class Same(Transform):
    """Changes nothing."""

    def __call__(self, sample):
        return sample


class Sum(Balancer):
    """The sum."""

    def forward(self, losses, labelled):
        return super().forward(losses, labelled)


@hookimpl
def visionkit_components():
    return [
        Component("head", "fuzz_head", ":Pixels", "a head"),
        Component("backbone", "fuzz_backbone", ":Body", "a backbone"),
        Component("evaluator", "fuzz_metric", ":Accuracy", "a metric"),
        Component("source", "fuzz_source", ":Stripes", "a source"),
        Component("transform", "fuzz_transform", ":Same", "a transform"),
        Component("balancer", "fuzz_balancer", ":Sum", "a balancer"),
    ]


@hookimpl
def visionkit_run_started(run):
    return None


@hookimpl
def visionkit_step_done(run, step, losses):
    return None


@hookimpl
def visionkit_evaluated(run, step, metrics):
    return None
'''
PIPELINE = """\
backbone: {name: fuzz_backbone}
heads:
  pixels: {name: fuzz_head}
sources:
  stripes: {name: fuzz_source, heads: [pixels], train: {}, val: {}}
train:
  steps: 1
  batch_size: 2
  workers: 0
  log_every: 1
  balancer: {name: fuzz_balancer}
  transforms: [fuzz_transform]
evaluate: {batch_size: 2, pictures: 1}
"""
USES = ("list", "list", "validate", "train", "train", "check")

# Expressions in place of values, arguments and results.
VALUES = (
    *("None", "True", "0", "-1", "3", "1.5", "float('nan')", "10**30", "''", "'x'", "'semantic'", "b'x'", "'a' * 3000"),
    *("[]", "()", "{}", "set()", "[None]", "[1, 2]", "('entropy',)", "['entropy', 'entropy']", "{'entropy': None}"),
    *("{'entropy': 1.0}", "{'other': torch.zeros(())}", "{'entropy': torch.zeros(2)}", "{1: 2}", "{'main': [1]}"),
    *("{'entropy': torch.tensor(float('nan'))}", "{'entropy': Mean(torch.ones(()), 0)}", "{'entropy': Mean(1.0, 2)}"),
    *("{'entropy': torch.tensor(1)}", "{'entropy': torch.zeros((), requires_grad=True)}", "{'c2': torch.zeros(1)}"),
    *("torch", "torch.zeros(())", "torch.zeros(3)", "torch.zeros(2, 2, 8, 8)", "torch.empty(0)", "torch.float32"),
    *("torch.zeros(1, 1, device='meta')", "int", "object", "object()", "Exception('x')", "lambda *a, **k: 1", "len"),
    *("iter(())", "range(3)", "(i for i in [1])", "NotImplemented", "...", "nn.Identity()", "Head", "LabelSet(('a',))"),
    *("SemanticOutput(None)", "SemanticOutput(torch.zeros(2, 9, 1, 1))", "[SemanticPrediction(torch.zeros(1, 1))]"),
    *(
        "FeatureSpec({})",
        "FeatureSpec({'c2': 4})",
        "Level(4, 4)",
        "Level('4', 0)",
        "'\\ud800'",
        "'a\\nb'",
        "SystemExit",
    ),
)
LINES = (
    *("raise ValueError('two\\nlines')", "raise KeyError('x')", "raise SystemExit(3)", "raise Exception", "1 / 0"),
    *(
        "raise RuntimeError('')",
        "raise NotImplementedError",
        "assert False",
        "import nowhere_at_all",
        "nothing",
        "del x",
    ),
    *("from visionkit import Nothing", "from . import x", "raise StopIteration", "raise OSError(2, 'no such', 'x')"),
    *("raise UserError('x')", "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')", "return", "yield 1", "await x"),
    *("torch.zeros(2) @ torch.zeros(3)", "self.nothing", "self.x = 1", "global torch; torch = None", "print('x')"),
    *(
        "import warnings; warnings.warn('x')",
        "raise type('E', (Exception,), {})",
        "'a' + 1",
        "[][0]",
        "None.x",
        "super()",
    ),
    *(
        "raise ExceptionGroup('x', [ValueError('y')])",
        "import sys; sys.exit('x')",
        "raise 'x'",
        "class",
        "\t\tx",
        "@",
        "(",
    ),
)
KINDS = ("head", "backbone", "evaluator", "source", "transform", "balancer", "neck", "importer", "Head", "heads", "")
TARGETS = (
    *(
        ":Nothing",
        ":pixels",
        "Pixels",
        "",
        ":",
        "::",
        "nowhere:X",
        "os:system",
        "torch:Tensor",
        "visionkit.data:Source",
    ),
    *(":PLUGIN", ":torch", ":Head", ":Body", ":visionkit_components", "fuzz:Pixels", "plugin:Pixels", ".x:Y", "a b:C"),
    *("visionkit_semantic.fcn:FCN", "tests:X", "json:dumps", "sys:exit", ":Pixels.forward", ":Pixels()"),
)
NAMES = ("fuzz_head", "fuzz_metric", "semantic_fpn", "", "a:b", "a b", "x" * 300, "é", "a\nb", "semantic", "1", "None")
HOOKS = (
    *("visionkit_component", "visionkit_components_", "visionkit_step_doen", "components", "visionkit_", "Visionkit_x"),
    *("visionkit_checkpoint_saved", "visionkit_step_done", "visionkit_components"),
)
PARAMETERS = (
    *("", "self", "self, *args", "self, **kwargs", "*args, **kwargs", "self, spec, labels", "self, a, b, c, d, e, f"),
    *("self, spec, labels, *, width: 'Nowhere' = 1", "self, spec, labels, *, width: 3 = 'x'", "self, *, width"),
    *("self, spec, labels, *, width: dict[int, list] = None", "self, spec, labels, width=[]", "self, self"),
)
BASES = (
    *("", "object", "nn.Module", "Head", "Backbone", "Source", "int", "Exception", "dict", "Nothing", "3", "str"),
    *("torch.Tensor", "Head, Source", "nn.Module, metaclass=type", "tuple"),
)
MARKS = (
    *("", "@hookimpl()", "@hookimpl(wrapper=True)", "@hookimpl(tryfirst=3)", "@hookimpl(specname='x')", "@property"),
    *("@staticmethod", "@hookimpl\n@hookimpl", "@hookimpl(hookwrapper=True)"),
)
FILES = ("plugin.py", "plugin.py", "plugin.py", "plugin", "a b.py", "1.py", "torch.py", "é.py", "plugin.txt", ".py")


def seeds(folder: Path) -> list[Path]:
    """The plugin for each use, with a pipeline of its components."""
    write_shapes(str(folder / "scenes"), 8, size=(96, 96))  # imports what draws, before the fork
    out = []
    for number, use in enumerate(USES):
        place = folder / f"{number}"
        place.mkdir()
        (place / "plugin.py").write_text(PLUGIN)
        (place / "pipeline.yaml").write_text(PIPELINE)
        (place / "options.json").write_text(json.dumps({"use": use, "files": ["plugin.py"]}))
        out.append(place)
    for use in ("train", "validate", "check"):
        rehearse(lambda use=use: run(Path(shutil.copytree(out[USES.index(use)], folder / use))))  # type: ignore[misc]
    return out


def mutate(rng: Random, folder: Path) -> None:
    text = PLUGIN
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        text = rng.choice(CHANGES)(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        at = rng.randrange(len(data))
        junk = rng.choice((b"\xff", b"\0", b"\xef\xbb\xbf", b"\r", b"\x0c", b"# coding: latin-1\n", b"# coding: x\n"))
        data = rng.choice((data[:at] + junk + data[at:], junk + data, data[:at], b"", data.decode().encode("utf-16")))
    (folder / "plugin.py").write_bytes(data)
    options = json.loads((folder / "options.json").read_text())
    if rng.random() < 0.1:
        name = rng.choice(FILES)
        (folder / "plugin.py").rename(folder / name)
        options["files"] = [name, *([name] if rng.random() < 0.2 else [])]
    if rng.random() < 0.05:
        options["files"].append(rng.choice(("other.py", "nowhere.py", ".", "pipeline.yaml")))
        (folder / "other.py").write_text(PLUGIN)
    (folder / "options.json").write_text(json.dumps(options))


def run(folder: Path) -> None:
    tempfile.tempdir = str(folder)  # no one cleans up behind a forked process
    with plugin_errors():
        _use(folder)


def _use(folder: Path) -> None:
    use, files = _options(folder)
    plugins = PluginManager(files=files)
    for problem in plugins.problems:
        require(len(str(problem).splitlines()) == 1, f"a problem of more than one line: {problem}")
    if use == "list":
        for listed in plugins.components():
            if listed.distribution != "visionkit":
                try:
                    plugins.load(listed.component.kind, listed.component.name)
                except UserError as error:
                    require(len(str(error).splitlines()) == 1, f"more than one line: {error}")
    elif use == "check":
        for kind, name in components_of(files[0], None, plugins):
            if kind in ("head", "evaluator"):
                check(kind, name, [], plugins, full=False).to_dict()
    else:
        pipeline = load_pipeline(str(folder / "pipeline.yaml"))
        if use == "train":
            train(pipeline, plugins, folder / "run")
        for result in validate(pipeline, plugins) if use == "validate" else ():
            if not result.ok:
                raise UserError(result.detail)


def command(folder: Path) -> list[str]:
    use, files = _options(folder)
    plugin = [part for file in files for part in ("--plugin", file)]
    if use == "list":
        return ["plugins", "--load", *plugin]
    if use == "check":
        return ["check", "fuzz_metric", *plugin]
    pipeline = str(folder / "pipeline.yaml")
    return (
        ["validate", pipeline, *plugin]
        if use == "validate"
        else ["train", pipeline, "--out", str(folder / "run"), *plugin]
    )


def _options(folder: Path) -> tuple[str, list[str]]:
    options = json.loads((folder / "options.json").read_text())
    return options["use"], [str(folder / file) for file in options["files"]]


def _replaced(rng: Random, text: str, pattern: str, new: Callable[[re.Match[str]], str]) -> str:
    """``text`` with another text in place of one match of a pattern."""
    matches = list(re.finditer(pattern, text, re.M))
    if not matches:  # an earlier change removed them
        return text
    match = rng.choice(matches)
    return text[: match.start()] + new(match) + text[match.end() :]


def _result(rng: Random, text: str) -> str:
    """Another result of a method."""
    return _replaced(rng, text, r"(?<= return ).+$", lambda _: rng.choice(VALUES))


def _attribute(rng: Random, text: str) -> str:
    """Another value of an attribute."""
    return _replaced(rng, text, r"(?<= = )\S.*$", lambda _: rng.choice(VALUES))


def _argument(rng: Random, text: str) -> str:
    """Another value of an argument, or one in place of all."""
    if rng.random() < 0.3:
        return _replaced(rng, text, r"(?<=\w)\([^()\n]+\)", lambda _: f"({rng.choice(VALUES)})")
    return _replaced(rng, text, r"(?<=[(,= ])[\w.\"]+(?=[,)])", lambda _: rng.choice(VALUES))


def _line(rng: Random, text: str) -> str:
    """Another line before one of the lines, as deep as it is."""
    return _replaced(rng, text, r"^( *)(?=\S)", lambda match: f"{match[1]}{rng.choice(LINES)}\n{match[1]}")


def _lines(rng: Random, text: str) -> str:
    """A line that is missing, repeated or indented otherwise."""
    form = rng.choice((lambda m: "", lambda m: f"{m[0]}{m[0]}", lambda m: f"  {m[0]}", lambda m: m[0].lstrip(" ")))
    return _replaced(rng, text, r"^.+\n", form)


def _signature(rng: Random, text: str) -> str:
    """Other parameters of a function."""
    return _replaced(rng, text, r"(?<=def )(\w+)\([^)]*\)", lambda match: f"{match[1]}({rng.choice(PARAMETERS)})")


def _base(rng: Random, text: str) -> str:
    """Another base class, or something else in place of a class."""
    if rng.random() < 0.2:
        name, value = rng.choice(("Pixels", "Body", "Accuracy", "Stripes", "Same", "Sum")), rng.choice(VALUES)
        return _replaced(rng, text, r"^@hookimpl$", lambda match: f"{name} = {value}\n{match[0]}")
    return _replaced(rng, text, r"(?<=^class )(\w+)\(\w+\)", lambda match: f"{match[1]}({rng.choice(BASES)})")


def _descriptor(rng: Random, text: str) -> str:
    """A component of another kind, name or target, or one that is described twice."""

    def new(match: re.Match[str]) -> str:
        parts = [
            rng.choice(KINDS),
            rng.choice(NAMES),
            rng.choice(TARGETS),
            rng.choice(("", "a\nb", "[red]", "x" * 3000)),
        ]
        own = match[0][10:-1].split(", ")
        for at in rng.sample(range(4), rng.choice((1, 1, 2))):
            own[at] = repr(parts[at]) if rng.random() < 0.7 else rng.choice(VALUES)
        changed = f"Component({', '.join(own)})"
        return rng.choice((changed, changed, changed, f"{match[0]}, {match[0]}", f"{match[0]}, {changed}", own[0]))

    return _replaced(rng, text, r"Component\(\"[^)]*\)", new)


def _hook(rng: Random, text: str) -> str:
    """Another name of a hook, or other decorators."""
    if rng.random() < 0.3:
        return _replaced(rng, text, r"^@hookimpl$", lambda _: rng.choice(MARKS))
    return _replaced(rng, text, r"(?<=def )visionkit_\w+", lambda _: rng.choice(HOOKS))


CHANGES = (_result, _result, _result, _attribute, _attribute, _argument, _argument, _line, _line, _lines, _signature,
           _signature, _base, _descriptor, _descriptor, _hook)  # fmt: skip
