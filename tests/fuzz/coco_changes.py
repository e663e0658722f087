"""Changes to COCO files by their meaning. Each takes the random generator and the tree of the JSON file."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from tests.fuzz.mutations import FILE_NAMES, INF, NAN, NUMBERS, STRINGS, VALUES, Raw

FAR = (NAN, INF, -INF, 1e9, -1e9, 2e8, 1e308, 4e4, -4e4, 1e-300, 2**31, 2**63)


def some(rng: Random, data: Any, part: str) -> Any:
    return rng.choice(data[part])


def polygons(rng: Random, data: Any) -> None:
    """A polygon that is short, odd, flat, nested too deep, made of pairs, far away, or no list of numbers."""
    x, y = rng.randrange(60), rng.randrange(44)
    ring: list[Any] = [x, y, x + 9, y, x + 9, y + 9, x, y + 9]
    far = list(ring)
    far[rng.randrange(8)] = rng.choice(FAR)
    text = [str(v) for v in ring]
    forms = [[ring[: rng.randrange(6)]], [ring[:5]], [ring[:7]], ring, [[ring]], [[[ring]]], [ring, ring[:4]], [[]],
             [[ring[i : i + 2] for i in range(0, 8, 2)]], [far], [far], [far, ring], [text], [" ".join(text)],
             [ring, None],
             [[True, *ring[1:]]], [[*ring, rng.choice(VALUES), 1]], [ring] * 500, [ring * 500], [[5, 5] * 4],
             [ring, {}],
             {"0": ring}, [[x + 0.5, y + 0.25, x + 0.5, y + 9.75, x + 0.5, y]], [[-9, -9, 99, -9, 99, 99, -9, 99]],
             rng.choice(VALUES)]  # fmt: skip
    some(rng, data, "annotations")["segmentation"] = rng.choice(forms)


def run_lengths(rng: Random, data: Any) -> None:
    """Run lengths that do not add up, negative, huge, fractional, textual, or for another size."""
    height, width = 48, 64
    total = height * width
    counts = rng.choice([
        [total], [0, total], [10, 20, total - 30], [10, 20], [total + 1], [total, 1], [-5, total + 5], [],
        [2**32 + total],
        [2**31, 2**31, total], [10.0, 20.0, total - 30.0], [10.5, 20.5, total - 31], ["10", "20", str(total - 30)],
        [NAN],
        [10, None, total - 10], [True, total - 1], [[10, total - 10]], [1] * total, [0] * 3000 + [total], total,
        "b'abc'", "b\"^d1\"", "PPYo0", "", "0", "`", "ooooo", "é", "\0", Raw('"\\ud800"'), "P" * 100_000, "~" * 50,
        "\x7f" * 9, None, {}, [Raw("1e400")], [10**30], "oooooooooooooooooooooo0",
    ])  # fmt: skip
    sizes = [[height, width]] * 6 + [
        [width, height], [0, 0], [-height, -width], [height], [height, width, 3], [float(height), float(width)],
        [str(height), str(width)], [height + 0.5, width], [2**31, 2**31], [2**16, 2**16], [1, total], None, "48x64", {},
        [True, total], [NAN, width],
    ]  # fmt: skip
    entry = some(rng, data, "annotations")
    old = entry.get("segmentation")
    if isinstance(old, dict) and rng.random() < 0.5:  # keep one of the two
        key = rng.choice(("counts", "size"))
        text = old["counts"] if isinstance(old["counts"], str) else "0"
        cut = rng.randrange(len(text) + 1)
        texts = [text[:cut], text + text, text[:cut] + "~" + text[cut:], f"b'{text}'", [text], text[::-1], text + "\n"]
        old[key] = (
            rng.choice(texts) if key == "counts" and rng.random() < 0.7 else rng.choice((counts, rng.choice(sizes)))
        )
        return
    entry["segmentation"] = {"size": rng.choice(sizes), "counts": counts}
    if rng.random() < 0.1:
        del entry["segmentation"][rng.choice(("size", "counts"))]
    if rng.random() < 0.1:
        entry["segmentation"] = [entry["segmentation"]]


def boxes(rng: Random, data: Any) -> None:
    """A box with another number of values, far away, negative, empty, textual, or as corners."""
    entry = some(rng, data, "annotations")
    x, y, w, h = 5, 6, 20, 10
    forms = [[x, y, w], [x, y, w, h, 1], [], [[x, y, w, h]], [x, y, -w, h], [x, y, 0, h], [x, y, 0, 0], [x, y, w, 1e-9],
             [str(v) for v in (x, y, w, h)], f"{x},{y},{w},{h}", None, {"x": x, "y": y, "w": w, "h": h},
             [x, y, w, None],
             [x, y, x + w, y + h], [True, y, w, h], [-1000, -1000, 5, 5], [-5, -5, 200, 200], [63.9999, 47.9999, 1, 1],
             [x, y, w, rng.choice(FAR)], [rng.choice(FAR), y, w, h], [rng.choice(NUMBERS) for _ in range(4)],
             [x, y, rng.choice(VALUES), h], rng.choice(VALUES)]  # fmt: skip
    entry["bbox"] = rng.choice(forms)
    if rng.random() < 0.2:
        entry.pop(rng.choice(("bbox", "segmentation", "area", "iscrowd")), None)


def areas(rng: Random, data: Any) -> None:
    entry = some(rng, data, "annotations")
    entry["area"] = rng.choice((0, -1, None, "12", "12.5", "", NAN, INF, 1e30, 0.1, True, [12], 3, 10**9, *NUMBERS))
    if rng.random() < 0.3:
        for other in data["annotations"]:
            other.pop("area", None)


def crowds(rng: Random, data: Any) -> None:
    value = rng.choice((1, 1, "0", "1", True, False, None, 0.0, 1.0, 0.5, 2, -1, "yes", "", "false", [], {}, NAN, 255))
    for entry in data["annotations"] if rng.random() < 0.3 else [some(rng, data, "annotations")]:
        entry["iscrowd"] = value


def keypoints(rng: Random, data: Any) -> None:
    """Keypoints of the wrong number or form, with an invalid visibility, or far away."""
    with_points = [a for a in data["annotations"] if a.get("keypoints")] or data["annotations"]
    entry = rng.choice(with_points)
    points = list(entry.get("keypoints") or [1, 2, 2] * 6)
    at = rng.randrange(len(points))
    changed = list(points)
    changed[at] = (
        rng.choice((*FAR, *VALUES)) if at % 3 < 2 else rng.choice((3, -1, 0.5, "2", True, None, NAN, 2.0, 1e9))
    )
    forms = [changed, changed, changed, points[:-1], points[:-3], [*points, 1, 1, 2], [], [0] * len(points),
    None, 5, {},
             [points[i : i + 3] for i in range(0, len(points), 3)], [str(v) for v in points], [v + 0.5 for v in points],
             [-5, -5, 2] * (len(points) // 3), [500, 500, 2] * (len(points) // 3), points * 1000]  # fmt: skip
    entry["keypoints"] = rng.choice(forms)
    if rng.random() < 0.4:
        entry["num_keypoints"] = rng.choice((0, 1, 99, -1, "3", None, 2.5, True, [], NAN))
    if rng.random() < 0.2:
        some(rng, data, "annotations")["keypoints"] = rng.choice((points, [1, 1, 2], []))


def categories(rng: Random, data: Any) -> None:
    """Duplicates, unusual names and IDs, and wrong keypoint names, skeletons, sigmas, colors and kinds."""
    all_of = data["categories"]
    entry = rng.choice(all_of)
    robot = next((c for c in all_of if c.get("keypoints")), entry)
    names = list(robot.get("keypoints") or ["a", "b", "c"])

    def set_key(category: dict, key: str, *values: Any) -> None:
        category[key] = rng.choice(values)

    form = rng.randrange(13)
    if form == 0:
        entry["name"] = rng.choice(all_of).get("name")
    elif form == 1:
        entry["id"] = rng.choice(all_of).get("id")
    elif form == 2:
        set_key(entry, "name", *STRINGS, None, 5, 0, True, [], ["a"], "a/b", "AP", "-", "a" * 500)
    elif form == 3:
        set_key(entry, "id", *NUMBERS, *STRINGS, None, True, [1], f"{entry.get('id')}", 1.5)
    elif form == 4:
        set_key(robot, "skeleton", [[0, 1]], [[1, 99]], [[1]], [[1, 2, 3]], [[1, "2"]], [1, 2], "1-2", None, {},
        [[1, 1]],
                [[1.0, 2.0]], [[1.5, 2]], [None], [[-1, 2]], [[NAN, 1]], [[2**63, 1]], [["a", "b"]], 5)  # fmt: skip
    elif form == 5:
        set_key(robot, "keypoints", names[:-1], [*names, "x"], [*names[:-1], names[0]], [], None, {}, "a,b,c",
        [1, 2, 3],
                [None] * len(names), [[]] * len(names), dict.fromkeys(names, 1), names * 50, ["l_a", "r_a", *names[2:]],
                ["left", "right", *names[2:]], names[::-1], len(names), [*names[:-1], ""])  # fmt: skip
    elif form == 6:
        size = len(names)
        set_key(robot, "sigmas", [0.1] * (size - 1), [0.1] * (size + 1), [0] * size, [-0.1] * size, [NAN] * size, "0.1",
                ["0.1"] * size, None, {}, [INF] * size, [1e-30] * size, [None] * size, 0.1, [[0.1]] * size)  # fmt: skip
    elif form == 7:
        set_key(entry, "color", [1, 2], [1, 2, 3, 4], "red", "#ff0000", [300, -1, 0], [0.5, 0.5, 0.5],
        None, [[1, 2, 3]],
                ["1", "2", "3"], [NAN, 0, 0], {}, [None] * 3, 5)  # fmt: skip
    elif form == 8:
        set_key(entry, "isthing", *("0", "1", True, False, None, 2, -1, "yes", [], 0.5, 0, ""))
    elif form == 9:
        data["categories"] = rng.choice(
            ([], {}, None, {c["id"]: c["name"] for c in all_of}, [c["name"] for c in all_of])
        )
    elif form == 10:
        all_of.remove(entry)
    elif form == 11:
        all_of += [{"id": 100 + i, "name": f"class {i}"} for i in range(rng.choice((1, 300, 3000)))]
    else:
        for category in all_of:
            category["keypoints"] = rng.choice((names, names[:3], ["nose"], []))


def ids(rng: Random, data: Any) -> None:
    """IDs that repeat, are of another type, or are unknown."""
    part, key = rng.choice((("images", "id"), ("annotations", "id"), ("annotations", "image_id"),
                            ("annotations", "category_id")))  # fmt: skip
    rows = data[part]
    form = rng.randrange(5)
    if form == 0:
        some(rng, data, part)[key] = some(rng, data, part)[key]
    elif form == 1:
        some(rng, data, part)[key] = rng.choice((0, -1, 999_999, None, True, [], {}, 1.5, NAN, *NUMBERS, *STRINGS))
    elif form == 2:
        some(rng, data, part)[key] = rng.choice((str, float))(some(rng, data, part)[key])
    elif form == 3:
        kind = rng.choice((str, float, lambda v: v - 1, lambda v: v + 2**40, lambda v: f"im/{v}", lambda v: f"0{v}"))
        for row in rows:
            row[key] = kind(row[key])
        if key == "id" and part == "images" and rng.random() < 0.7:
            for row in data["annotations"]:
                row["image_id"] = kind(row["image_id"])
    else:
        row = copy.deepcopy(some(rng, data, part))
        row.update(rng.choice(({}, {"id": 777}, {"extra": 1})))
        rows.insert(rng.randrange(len(rows) + 1), row)


def image_entries(rng: Random, data: Any) -> None:
    """File names that lead elsewhere, and sizes that are swapped, zero, fractional, textual, huge or missing."""
    entry = some(rng, data, "images")
    height, width = entry["height"], entry["width"]
    form = rng.randrange(5)
    if form == 0:
        entry["file_name"] = rng.choice(FILE_NAMES)
    elif form == 1:
        entry["height"], entry["width"] = rng.choice(
            [(width, height), (0, 0), (-height, -width), (str(height), str(width)), (height + 0.0, width + 0.0), (1, 1),
             (height + 0.5, width), (height + 1, width), (2**31, 2**31), (10**6, 10**6), (None, None), (height, NAN)]
        )  # fmt: skip
    elif form == 2:
        entry[rng.choice(("height", "width"))] = rng.choice(VALUES)
    elif form == 3:
        for row in data["images"]:
            row.pop(rng.choice(("height", "width", "file_name")), None)
    else:
        entry["file_name"] = some(rng, data, "images")["file_name"]


def structure(rng: Random, data: Any) -> None:
    """A part of the file that is missing, empty, or an object instead of a list."""
    part = rng.choice(("images", "annotations", "categories"))
    rows = data[part]
    form = rng.randrange(6)
    if form == 0:
        del data[part]
    elif form == 1:
        data[part] = rng.choice(([], {}, None, "", 0, [[]], [None], rows[0], [rows]))
    elif form == 2:
        data[part] = {str(row["id"]): row for row in rows}
    elif form == 3:
        data[part] = [list(row.items()) for row in rows]
    elif form == 4:
        rows.append(rng.choice(VALUES))
    else:
        data["info"] = data["licenses"] = rng.choice(VALUES)


FILE_CHANGES = (categories, ids, image_entries, structure)
DETECTION_CHANGES = (polygons, polygons, run_lengths, run_lengths, boxes, areas, crowds, keypoints)
