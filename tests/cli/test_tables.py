"""Tables of metrics lose no figure, however narrow the terminal."""

from __future__ import annotations

import math

import pytest

from visionkit.cli.tables import print_metrics

METRICS = {
    "shapes/semantic/mIoU": 0.7523,
    "shapes/semantic/pixel_accuracy": 0.9142,
    "shapes/boxes/AP": 0.4647,
    "shapes/boxes/AP50": 0.7896,
    "shapes/boxes/AP75": 0.4807,
    "shapes/edges/L1": 0.0632,
    "shapes/edges/PSNR": 13.8482,
    "shapes/edges/SSIM": 0.5316,
}


@pytest.mark.parametrize("columns", ["70", "80", "200"])
def test_every_figure_is_printed_whole(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_metrics(METRICS)
    printed = capsys.readouterr().out
    assert "…" not in printed
    for key, value in METRICS.items():
        source, head, metric = key.split("/")
        assert {source, head, metric, f"{value:.3f}"} <= set(printed.split())


def test_a_wide_terminal_has_a_column_a_metric(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_metrics(METRICS)
    heading = capsys.readouterr().out.splitlines()[2]
    assert [cell.strip() for cell in heading.strip("┃").split("┃")][2:] == [
        *("AP", "AP50", "AP75", "mIoU", "pixel_accuracy", "L1", "PSNR", "SSIM"),
    ]


def test_what_was_not_measured_is_not_available(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_metrics({**METRICS, "shapes/boxes/AP75": math.nan, "val/people/AP": math.nan, "val/people/AP50": math.nan})
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert printed.split().count("n/a") == 3
    assert "val: no ground truth that head 'people' could be evaluated on" in printed
    assert "n/a: there was nothing to measure" in printed
    print_metrics(METRICS)
    assert "n/a" not in capsys.readouterr().out
