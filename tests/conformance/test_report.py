"""What a report says: expected failures, counts, and the words of ``visionkit check``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.conformance.toys import Sound, SoundBalancer
from visionkit import cli
from visionkit.data.shapes import ShapesSource
from visionkit.errors import UserError
from visionkit.testing import CHECKS, check_balancer, check_head, name_of, promise_of

Run = Callable[..., tuple[int, str, str]]


class Undocumented(SoundBalancer):
    def __init__(self, heads, *, slope: float = 1.0) -> None:
        super().__init__(heads)


class Excused(Sound):
    expected_failures = {"arguments_are_documented": "its argument is a secret"}

    def __init__(self, spec, labels, *, secret: int = 1) -> None:
        super().__init__(spec, labels)


def test_every_check_has_a_name_of_its_own_and_a_promise() -> None:
    for kind, checks in CHECKS.items():
        names = [name_of(check) for check in checks]
        assert len(set(names)) == len(names), kind
        assert all(promise_of(check).endswith(".") for check in checks), kind


def test_a_failure_is_told_by_name_and_reason() -> None:
    report = check_balancer(Undocumented)
    assert [result.name for result in report.failed] == ["arguments_are_documented"]
    with pytest.raises(AssertionError, match="arguments_are_documented: the docstring says nothing of slope"):
        report.assert_passed()
    assert report.summary() == "5 passed, 1 failed, 2 skipped, 0 failed as expected, of 8"


def test_an_expected_failure_is_none(source: ShapesSource) -> None:
    report = check_balancer(Undocumented, expected_failures={"arguments_are_documented": "not yet"})
    report.assert_passed()
    assert [(result.name, result.reason) for result in report.expected] == [("arguments_are_documented", "not yet")]
    report = check_head(Excused, source=source, only=["arguments_are_documented"])
    assert [result.reason for result in report.expected] == ["its argument is a secret"]


def test_an_unexpected_pass_is_a_failure() -> None:
    report = check_balancer(SoundBalancer, expected_failures={"state_is_restored": "it was broken once"})
    assert [result.name for result in report.failed] == ["state_is_restored"]
    assert "expect it no longer" in report.failed[0].reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"expected_failures": {"state_is_restord": "why"}}, "did you mean 'state_is_restored'"),
        ({"expected_failures": {"state_is_restored": " "}}, "must say why"),
        ({"only": ["everything"]}, "no check 'everything'"),
    ],
)
def test_mistakes_of_the_caller_are_told(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_balancer(SoundBalancer, **options)


def test_what_cannot_be_built_is_not_checked_further() -> None:
    class Broken(SoundBalancer):
        def __init__(self, heads) -> None:
            raise RuntimeError("not today")

    report = check_balancer(Broken)
    assert [result.name for result in report.failed] == ["is_built"]
    assert "RuntimeError: not today" in report.failed[0].reason
    assert len(report.skipped) == len(CHECKS["balancer"]) - 1


def test_a_head_without_a_source_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where shapes are drawn

    class Depth(Sound):
        task = "depth"

    with pytest.raises(UserError, match="no source that needs no arguments offers the task 'depth'"):
        check_head(Depth)


def test_the_random_numbers_of_the_caller_stay_as_they_are() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_balancer(SoundBalancer)
    assert torch.equal(torch.rand(3), expected)


def test_a_report_is_a_table_and_plain_data() -> None:
    report = check_balancer(Undocumented)
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(report.table())
    shown = capture.get()
    for result in report.results:
        assert result.name in shown
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["component"], data["failed"], len(data["checks"])) == ("Undocumented", 1, 8)


# -- the command

FILE = '''
"""Two balancers, one of which takes an argument that nobody has described."""
from visionkit import Component, hookimpl
from visionkit.train.balance import Balancer


class Good(Balancer):
    """The sum."""

    def __init__(self, heads, *, weights: dict[str, float] | None = None, slope: float = 1.0):
        """Args: none."""
        super().__init__(heads, weights=weights)
        self.slope = slope

    def forward(self, losses, labelled):
        return super().forward(losses, labelled) * self.slope


Good.__doc__ += "\\n\\nArgs:\\n    slope: of the sum.\\n"


class Bad(Good):
    """Twice the sum."""

    def __init__(self, heads, *, hidden: int = 1):
        super().__init__(heads)


@hookimpl
def visionkit_components():
    return [Component("balancer", "good", ":Good"), Component("balancer", "bad", ":Bad")]
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Status, stdout and stderr of ``visionkit check ARGUMENTS``, beside the file ``two.py``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.py").write_text(FILE)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_file_is_checked_whole(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("two.py", "--json", "out.json")
    assert status == 1
    assert "balancer good: 7 passed, 0 failed, 1 skipped, 0 failed as expected, of 8" in out
    assert "balancer bad: 5 passed, 1 failed" in out
    assert [report["failed"] for report in json.loads((tmp_path / "out.json").read_text())] == [1, 0]


def test_a_component_of_a_file_with_arguments(run: Run) -> None:
    assert run("good", "--plugin", "two.py", "--set", "slope=2")[0] == 0
    assert run("good", "--plugin", "two.py", "--set", "slope=1.0e+39")[0] == 1


def test_a_class_by_its_module(run: Run) -> None:
    status, out, _ = run("visionkit.train.balance:Fixed")
    assert status == 0
    assert "balancer visionkit.train.balance:Fixed" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["semantic_fnp"], "did you mean 'semantic_fpn'"),
        (["nowhere.py"], "no such file"),
        (["timm"], "needs model"),
        (["fixed", "--set", "wieghts={}"], "did you mean 'weights'"),
        (["fixed", "--set", "weights"], "expected KEY=VALUE"),
        (["fixed", "--kind", "importer"], "there are checks for"),
        (["two.py", "--set", "slope=1"], "choose one"),
        (["pathlib:Path"], "derives from none of the contracts"),
        (["torchvision/maskrcnn_resnet50_fpn"], "is of kind 'importer'"),
    ],
)
def test_mistakes_of_the_user_end_with_status_2(arguments: list[str], says: str, run: Run) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert says in err


SEVERAL = '''
"""A head and an evaluator of one name, levels of a backbone of its own, and data that lie in a folder."""
from collections.abc import Mapping
from typing import Any, ClassVar

from tests.conformance.toys import Sound, SoundEvaluator, SoundSource
from visionkit import Component, hookimpl


class Stacked(Sound):
    """Reads what no backbone here calls so.

    Args:
        level: the level that is read.
        width: channels.
        file: any file.
    """

    task = "stripes"
    evaluators = ()
    check_args = {"file": "{data}/instances.json", "width": 4}

    def __init__(self, spec, labels, *, file: str, level: str = "stack2", width: int = 64) -> None:
        super().__init__(spec, labels, level=level, width=width)
        assert open(file).read() and width == 4


class Folder(SoundSource):
    """Stripes, from a folder.

    Args:
        root: the folder.
    """

    def __init__(self, *, root: str) -> None:
        super().__init__()
        self.labels = {"stripes": self.labels["semantic"]}
        open(root + "/instances.json").close()

    def load(self, index, tasks):
        sample = super().load(index, ["semantic"])
        sample.targets = {"stripes": sample.targets["semantic"]}
        return sample


@hookimpl
def visionkit_components():
    return [
        Component("head", "stripes", ":Stacked"),
        Component("evaluator", "stripes", ":SoundEvaluator"),
        Component("source", "stripes_folder", ":Folder"),
    ]
'''


def test_several_kinds_of_one_name_are_all_checked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    (tmp_path / "instances.json").write_text("[]")
    source = f"{{name: stripes_folder, root: {tmp_path}}}"
    status, out, err = run("stripes", "--plugin", "several.py", "--source", source, "--json", "out.json")
    reports = json.loads((tmp_path / "out.json").read_text())
    assert [(report["kind"], report["failed"]) for report in reports] == [("head", 0), ("evaluator", 0)], out
    assert status == 0
    assert "(head, evaluator); choose one with --kind" in err
    assert "not run without --full: forward_can_be_exported" in out


def test_a_head_whose_source_needs_a_path_says_so_and_leaves_the_others(run: Run, tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    status, _, err = run("stripes", "--kind", "head", "--plugin", "several.py")
    assert status == 2
    assert "no source that needs no arguments offers the task 'stripes': give one with source= (or --source)" in err
    status, out, _ = run("several.py")
    assert status == 1
    assert "head stripes: 0 passed, 1 failed" in out
    (tmp_path / "several.py").write_text(
        SEVERAL.replace(
            "    def __init__(self, *, root", '    check_args = {"root": "{data}"}\n\n    def __init__(self, *, root'
        )
    )
    assert run("stripes", "--kind", "head", "--plugin", "several.py")[0] == 0


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("shapse", "did you mean 'shapes'"),
        ("[shapes]", "expected the name of a source"),
        ("{name: shapes, imges: 3}", "did you mean 'images'"),
        ("{name: coco, images: nowhere, annotations: x.json}", "nowhere: no such folder"),
    ],
)
def test_mistakes_in_the_source_end_with_status_2(source: str, says: str, run: Run) -> None:
    status, _, err = run("semantic_fpn", "--source", source)
    assert (status, says in err, len(err.splitlines())) == (2, True, 1), err


def test_code_that_cannot_be_checked_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from visionkit import Head\n\nclass Odd(Head):\n    task = 'boxes'\n    needs = 3\n"
    )
    status, _, err = run("odd:Odd")
    assert status == 2
    assert err.startswith("error: head 'odd:Odd' of odd cannot be loaded: Odd: ")
    assert len(err.splitlines()) == 1
