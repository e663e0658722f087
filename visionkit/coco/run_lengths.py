"""COCO's compressed run-length encodings, checked and measured without decoding a single mask.

``counts`` holds the lengths of alternating runs of background and foreground, column by column. Compressed, every run
is a signed number (from the fourth on, its difference to the one before the last) in characters of 5 bits each, the
lowest first; bit 6 says that another character of the same number follows. pycocotools reads beyond the end of a
damaged encoding, or never returns, so nothing reaches it that this module has not checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHUNK = 1 << 17  # characters per step, so that the arrays of a step fit into the cache
_CONTINUED = bytes(range(48 + 32, 48 + 64))  # characters that are not the last one of their number
_SIGNED = bytes((c - 48 if c - 48 < 16 else c - 48 - 32) & 255 for c in range(256))  # of the last one, as int8
_MOST_BITS = 35  # no mask has more pixels, and a longer number would overflow


def measure(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The number of pixels of each encoding, and how many of them are foreground.

    Returns:
        two (N,) int64 arrays. Both are -1 for a text that is not a valid encoding: an unknown character, an incomplete
        last run or a negative run.
    """
    chunks = _chunks(texts)
    if len(chunks) <= 1:
        parts = [_measure(chunk) for chunk in chunks]
    else:
        from concurrent.futures import ThreadPoolExecutor  # which takes longer to import than most files to check

        with ThreadPoolExecutor(2) as pool:  # NumPy works on large arrays without the interpreter's lock
            parts = list(pool.map(_measure, chunks))
    totals, areas = ([part[i] for part in parts] or [np.zeros(0, np.int64)] for i in (0, 1))
    return np.concatenate(totals), np.concatenate(areas)


def _chunks(texts: Sequence[bytes]) -> list[Sequence[bytes]]:
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    chunks, start = [], 0
    while start < len(texts):
        stop = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _CHUNK))
        chunks.append(texts[start : max(start + 1, stop)])
        start += len(chunks[-1])
    return chunks


def _measure(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    totals, areas = np.full(len(texts), -1, np.int64), np.full(len(texts), -1, np.int64)
    text = b"".join(texts)
    codes = np.frombuffer(text, np.uint8) - np.uint8(48)
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    continued = np.flatnonzero(codes > 31)
    if codes.max(initial=0) > 63 or not all(texts) or not _complete(codes, ends, continued):
        rows = [row for row, one in enumerate(texts) if _is_valid(one)]
        if rows:
            totals[rows], areas[rows] = _measure([texts[row] for row in rows])
        return totals, areas
    values = np.frombuffer(text.translate(_SIGNED, _CONTINUED), np.int8).astype(np.int64)
    _add_low_bits(values, codes, continued)
    return _sum_runs(values, ends - np.searchsorted(continued, ends))


def _complete(codes: np.ndarray, ends: np.ndarray, continued: np.ndarray) -> bool:
    """Whether every text ends with the last character of a number, and no number has too many characters."""
    longest = _MOST_BITS // 5 - 1
    too_long = len(continued) > longest and bool((continued[longest:] - continued[:-longest] == longest).any())
    return not too_long and not bool((codes[ends - 1] > 31).any())


def _is_valid(text: bytes) -> bool:
    codes = np.frombuffer(text, np.uint8) - np.uint8(48)
    return len(codes) > 0 and codes.max() < 64 and _complete(codes, np.array([len(codes)]), np.flatnonzero(codes > 31))


def _add_low_bits(values: np.ndarray, codes: np.ndarray, continued: np.ndarray) -> None:
    """Complete the numbers of several characters, of which ``values`` holds the last one."""
    row = continued - np.arange(len(continued))  # the number that a continued character belongs to
    first = np.flatnonzero(np.diff(row, prepend=-1))
    lengths = np.diff(first, append=len(row))
    shift = 5 * (np.arange(len(row)) - np.repeat(first, lengths))
    low = np.add.reduceat((codes[continued] & 31).astype(np.int64) << shift, first) if len(first) else 0
    values[row[first]] = (values[row[first]] << 5 * lengths) + low


def _sum_runs(values: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Total and foreground length of each text's runs, whose differences are ``values``; -1 if a run is negative."""
    starts = np.concatenate(([0], stops[:-1]))
    totals, areas = values[starts].copy(), np.zeros(len(starts), np.int64)  # the first run stands for itself
    lowest = totals.copy()
    values[starts] = 0
    for parity in (0, 1):
        sums = np.cumsum(values[parity::2])
        first, last = (starts - parity + 1) // 2, (stops - parity + 1) // 2
        rows = np.flatnonzero(last > first)
        if not len(rows):
            continue
        before = np.where(first > 0, sums[first - 1], 0)
        runs = sums - np.repeat(before, last - first)
        length = np.add.reduceat(runs, first[rows])
        totals[rows] += length
        areas[rows] += np.where((starts[rows] & 1) != parity, length, 0)
        lowest[rows] = np.minimum(lowest[rows], np.minimum.reduceat(runs, first[rows]))
    return np.where(lowest < 0, -1, totals), np.where(lowest < 0, -1, areas)
