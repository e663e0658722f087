"""What all tests share: one thread a process, and where real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch or OpenCV: tests run in parallel processes, and small tensors gain nothing from threads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ.setdefault(variable, "1")

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("VISIONKIT_REAL_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; without it the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data: set VISIONKIT_REAL_DATA to the folder that holds the data sets")
    return REAL_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marked tests are skipped where what they need is not there."""
    for item in items:
        if item.get_closest_marker("real_data") and not REAL_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason="no real data: set VISIONKIT_REAL_DATA"))
        if item.get_closest_marker("gpu"):
            import torch  # only where a test asks for it: collecting the others stays quick

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
