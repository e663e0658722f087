"""The journal, the encoding of predictions, file names and safe writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionkit.errors import RunError, UserError
from visionkit.results.codec import CodecError, decode, encode
from visionkit.results.files import (
    check_output_folder,
    json_text,
    output_names,
    safe_name,
    safe_path,
    with_suffix,
    write_atomically,
    write_optional,
)
from visionkit.results.journal import Journal, output_files
from visionkit.types import KeypointPrediction, MaskPrediction, PanopticPrediction, SemanticPrediction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "predictions.jsonl"


def test_entries_are_there_after_each_call(path: Path) -> None:
    journal = Journal(path, {"weights": "a"})
    for key in (1, "1", "é\n\udc80"):
        journal.append(key, {"value": [key]})
        assert len(path.read_bytes().splitlines()) == 1 + len(journal)
    journal.close()
    again = Journal(path, {"weights": "a"}, resume=True)
    assert list(again) == [1, "1", "é\n\udc80"]
    assert [again[key]["value"] for key in again] == [[1], ["1"], ["é\n\udc80"]]


def test_the_last_entry_of_an_image_counts(path: Path) -> None:
    journal = Journal(path, {})
    for value in (1, 2):
        journal.append("a", {"value": value})
    assert journal["a"]["value"] == 2
    journal.close()
    assert Journal(path, {}, resume=True)["a"]["value"] == 2


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_incomplete_last_line_is_ignored_and_removed(path: Path, cut: int) -> None:
    journal = Journal(path, {})
    journal.append("a", {"value": 1})
    journal.append("b", {"value": 2})
    journal.close()
    os.truncate(path, path.stat().st_size - cut)
    journal = Journal(path, {}, resume=True)
    assert list(journal) == ["a"]
    journal.append("c", {"value": 3})
    journal.close()
    assert [json.loads(line).get("image") for line in path.read_text().splitlines()] == [None, "a", "c"]


def test_a_damaged_line_is_an_image_to_predict_again(path: Path) -> None:
    journal = Journal(path, {})
    for key in "abc":
        journal.append(key, {})
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2] + b"7\n" + lines[3])
    assert list(Journal(path, {}, resume=True)) == ["b", "c"]


def test_without_resume_it_starts_over(path: Path) -> None:
    journal = Journal(path, {"weights": "a"})
    journal.append("a", {})
    journal.close()
    assert list(Journal(path, {"weights": "b"})) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "b", "batch_size": 2}, 'weights was "a" and is now "b"'),
        ({"weights": "a", "batch_size": 4}, "batch_size was 2 and is now 4"),
        ({"weights": "a", "batch_size": 2, "flip": True}, "flip was null and is now true"),
        ({"weights": "a"}, "batch_size was 2 and is now null"),
    ],
)
def test_the_journal_of_something_else_is_refused(path: Path, changed: dict[str, Any], message: str) -> None:
    Journal(path, {"weights": "a", "batch_size": 2}).close()
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"cannot resume: {message}; start over without --resume"):
        Journal(path, changed, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{}\n", "no journal\n", '{"journal": 99, "belongs_to": {}}\n', "\0" * 100])
def test_another_file_is_no_journal(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=r"predictions\.jsonl: not a journal of this version"):
        Journal(path, {}, resume=True)
    assert output_files(path.parent) <= {"predictions.jsonl"}


def test_two_processes_do_not_write_one_journal(path: Path) -> None:
    pytest.importorskip("fcntl")
    first = Journal(path, {})
    for resume in (True, False):
        with pytest.raises(UserError, match="another process is writing here"):
            Journal(path, {}, resume=resume)
    first.append("a", {})
    first.close()
    assert list(Journal(path, {}, resume=True)) == ["a"]


def test_a_killed_process_leaves_every_entry(path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from visionkit.results.journal import Journal
journal = Journal(Path({str(path)!r}), {{}})
for number in range(100):
    journal.append(number, {{"value": "x" * number}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode != 0
    assert list(Journal(path, {}, resume=True)) == list(range(100))


def test_a_failing_write_is_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path, {})
    journal.append("a", {"value": 1})
    before = path.read_bytes()

    class Full:
        """Takes a part, as a disk does that fills up."""

        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def write(self, data: bytes) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:5])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(journal, "_file", Full(journal._file))
    with pytest.raises(RunError, match=r"predictions\.jsonl: cannot be written: No space left .* it holds 1 image"):
        journal.append("b", {"value": 2})
    monkeypatch.undo()
    assert path.read_bytes() == before
    journal.append("b", {"value": 2})
    assert journal["b"]["value"] == 2


def test_files_of_earlier_calls_are_known(path: Path) -> None:
    path.parent.mkdir()
    for name in ("a.png", "b.png"):
        (path.parent / name).touch()
    journal = Journal(path, {}, notes={"earlier_files": ["a.png", "gone.png"]})
    journal.append(1, {"files": {"b.png": "hash"}, "records": {"boxes": []}})
    assert output_files(path.parent) == {"a.png", "b.png", "predictions.jsonl"}


# -- predictions as JSON


@dataclass
class Part:
    values: torch.Tensor
    note: str = ""


@dataclass
class Nested:
    """A plugin's prediction."""

    part: Part
    parts: list[Part] = field(default_factory=list)
    table: dict[Any, Any] = field(default_factory=dict)
    pair: tuple[int, float | None] = (1, None)


def random_predictions() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(3, 4, generator=generator)
    common = {"boxes": boxes, "scores": torch.rand(3, generator=generator), "labels": torch.tensor([0, 1, 1])}
    rles = [
        {"size": [9, 8], "counts": b"abc\\0"},
        {"size": [9, 8], "counts": b"\x00\xff"},
        {"size": [9, 8], "counts": b""},
    ]
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    return [
        MaskPrediction(**common, rles=rles),
        KeypointPrediction(**common, keypoints=torch.rand(3, 2, 3, generator=generator)),
        SemanticPrediction(torch.randint(0, 9, (40, 30), generator=generator).to(torch.uint8)),
        SemanticPrediction(torch.zeros(0, 3, dtype=torch.uint8), odd.bfloat16().reshape(1, 2, 2)),
        PanopticPrediction(torch.zeros(4, 4, dtype=torch.int32), torch.zeros(0).long(), torch.zeros(0)),
        Nested(
            Part(odd, "é\udc80"),
            [Part(torch.tensor(3)), Part(torch.tensor([True, False]))],
            {1: "x", "1": b"y", (1, 2): np.arange(6, dtype=np.uint16).reshape(2, 3)[:, ::2], None: np.float32(0.1)},
            (-1, float("nan")),
        ),
    ]


def same(a: Any, b: Any) -> bool:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy().tobytes() \
            if a.dtype != torch.bfloat16 else same(a.view(torch.int16), b.view(torch.int16))  # fmt: skip
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, one.name), getattr(b, one.name)) for one in fields(a))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    return repr(a) == repr(b)


@pytest.mark.parametrize("prediction", random_predictions(), ids=lambda one: type(one).__name__)
def test_predictions_come_back_bit_by_bit(prediction: Any) -> None:
    assert same(prediction, decode(json.loads(json.dumps(encode(prediction)))))


def test_what_is_no_plain_data_is_refused() -> None:
    class Secret:
        pass

    part = Part(torch.zeros(1))
    part.cache = 1  # type: ignore[attr-defined]
    for value in (Secret(), [Secret()], part, lambda: 1, {1, 2}, Part):
        with pytest.raises(CodecError):
            encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {"dataclass": ["os", "system", {"command": "true"}]},
        {"dataclass": ["subprocess", "Popen", {"args": "true"}]},
        {"dataclass": ["not.imported", "Thing", {}]},
        {"dataclass": ["visionkit.types.predictions", "BoxPrediction", {"boxes": None}]},
        {"tensor": ["load", [1], "eJxjYGBgAAAABAAB"]},
        {"tensor": ["float32", [3], "eJxjYGBgAAAABAAB"]},
        {"tensor": ["float32", [1], "not base64"]},
        {"unknown": 1},
        {},
        {"tuple": 5},
    ],
)
def test_other_data_is_refused_and_runs_nothing(data: Any) -> None:
    with pytest.raises(CodecError):
        decode(data)


# -- names and files


def test_ordinary_names_stay() -> None:
    for name in ("000000000139", "frankfurt_000001_019698", "a b.c%s", "Zürich", ".hidden", "x" * 160):
        assert safe_name(name) == name
    assert safe_path("a/b/c.d") == "a/b/c.d"
    assert with_suffix("a/b", "_depth") == "a/b_depth"


def test_other_names_are_replaced_and_differ() -> None:
    texts = ["", ".", "..", "../x", "a/b", "a_b", "a\0b", "/etc/x", "C:\\x", "x" * 161, "x" * 300, "é" * 200, "\ud800"]
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert 0 < len(os.fsencode(name)) <= 160
        assert "/" not in name
        assert name.strip(".")
        assert safe_name(name) == name
    for text in texts:
        assert ".." not in safe_path(text).split("/")
        assert not safe_path(text).startswith("/")
    assert "/" not in with_suffix("a", "_0_../up")


def test_a_long_path_keeps_its_end() -> None:
    (name,) = output_names([Path("/".join(["folder"] * 500)) / "image.jpg"])
    assert len(name) < 400
    assert name.endswith("/image")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("x" * 255), "new")
    assert (tmp_path / ("x" * 255)).read_text() == "new"
    for path in (tmp_path / ("y" * 256), tmp_path / ("x" * 255) / "below", Path("/proc/file")):
        with pytest.raises(RunError, match="cannot be written: "):
            write_atomically(path, "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="folder: cannot be written: Is a directory; what was there before is intact"):
        write_atomically(tmp_path / "folder", b"")
    assert {path.name for path in tmp_path.iterdir()} == {"x" * 255, "folder"}


def test_a_file_that_nothing_depends_on_is_only_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_optional(tmp_path / ("y" * 256), b"")
    assert len(caplog.messages) == 1
    assert "File name too long" in caplog.text


def test_an_output_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output_folder(tmp_path / "new" / "folder")
    check_output_folder(tmp_path)
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/x"), tmp_path / ("x" * 256), Path("a\0")):
        with pytest.raises(UserError):
            check_output_folder(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_holds_no_numbers_that_are_none() -> None:
    metrics = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": 2}}
    assert json.loads(json_text(metrics)) == {"a": None, "b": [None, 1.5], "c": {"d": 2}}
