"""``visionkit new-plugin``: a small package to build a plugin on, complete from its first minute."""

from __future__ import annotations

import contextlib
import importlib.util
import keyword
import os
import re
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from visionkit.cli.options import plugin_manager
from visionkit.errors import UserError

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager

Kind = Literal["head", "backbone", "neck", "source", "transform", "evaluator", "balancer"]

# What the example of each kind is, for the summary of its package.
EXAMPLES: dict[str, str] = {
    "head": "counts the objects of each class, with a metric for it",
    "backbone": "a small network of depthwise separable convolutions",
    "neck": "a top-down pyramid that learns how much each level weighs",
    "source": "drawn images of stripes, labelled with the way they run",
    "transform": "greys out a random rectangle of each image",
    "evaluator": "accuracy near the borders of regions",
    "balancer": "losses in units of their own running means",
}


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package and of what it offers: a_name.")],
    kind: Annotated[Kind, typer.Option(help="What it offers.")] = "head",
    file: Annotated[bool, typer.Option("--file", help="One file and a pipeline instead of a package.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Its own folder, which is not there yet; ./NAME if not given."),
    ] = None,
) -> None:
    """Write a small plugin package, with tests and a pipeline, to build your own on."""
    check_name(name, kind, plugin_manager(()))
    folder = name if out is None else str(out)
    write_package(Path(folder), single_file(name, kind) if file else package(name, kind))
    form, article = "a file" if file else "a package", "an" if kind == "evaluator" else "a"
    typer.echo(f"{folder}: {form} with {article} {kind}, '{name}': {EXAMPLES[kind]}")
    if file:
        code, pipeline = Path(folder, f"{name}.py"), Path(folder, f"{name}.yaml")
        typer.echo(f"next: visionkit check {code}, then visionkit train {pipeline} --plugin {code}")
    else:
        typer.echo(f"next: pip install -e {folder} && pytest {folder}, then see {Path(folder, 'README.md')}")


def check_name(name: str, kind: str, plugins: PluginManager) -> None:
    """Whether a package may be called ``name``.

    Raises:
        UserError: it is no identifier in lower case, a module or a component of this kind is called so already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        fitting = re.sub(r"\W+", "_", name.lower()).strip("_")
        near = f"; did you mean '{fitting}'?" if fitting != name and fitting.isidentifier() else ""
        raise UserError(f"'{name}' cannot be imported: a name is lower-case letters, digits and _, begins with a "
                        f"letter, and is no word of Python's own{near}")  # fmt: skip
    taken = [listed for listed in plugins.components(kind) if listed.component.name == name]
    if taken:
        raise UserError(f"there is a {kind} '{name}' already, of {taken[0]}; choose another name")
    if importlib.util.find_spec(name) is not None:
        raise UserError(f"there is a Python module '{name}' already; choose another name")


def package(name: str, kind: str) -> dict[str, str]:
    """The text of every file of the package, by its path."""
    words = _words(name, kind)
    return {
        ".gitignore": _fill("plugin/gitignore", words),
        "README.md": _fill("plugin/README.md", words),
        "pyproject.toml": _fill("plugin/pyproject.toml", words),
        f"src/{name}/__init__.py": _fill(f"{kind}/hook.py", words),
        f"src/{name}/{kind}.py": _fill(f"{kind}/code.py", words),
        f"tests/test_{name}.py": _fill(f"{kind}/test.py", words),
        f"pipelines/{name}.yaml": _fill(f"{kind}/pipeline.yaml", words),
    }


def single_file(name: str, kind: str) -> dict[str, str]:
    """The same in one file with its hook, for ``--plugin``, and a pipeline beside it."""
    words = _words(name, kind)
    code, hook = _fill(f"{kind}/code.py", words), _fill(f"{kind}/hook.py", words)
    imports = re.search(r"^from visionkit import (.*)$", code, re.MULTILINE)
    assert imports is not None
    names = sorted({*imports[1].split(", "), "Component", "hookimpl"})
    code = code.replace(imports[0], f"from visionkit import {', '.join(names)}")
    offered = hook[hook.index("@hookimpl") :].replace(f"{name}.{kind}:", ":")
    pipeline = _fill(f"{kind}/pipeline.yaml", words).replace("of this package", f"of {name}.py")
    return {f"{name}.py": f"{code}\n\n{offered}", f"{name}.yaml": pipeline}


def _words(name: str, kind: str) -> dict[str, str]:
    camel = "".join(part.capitalize() for part in name.split("_"))
    return {
        "name": name,
        "kind": kind,
        "article": "an" if kind == "evaluator" else "a",
        "summary": EXAMPLES[kind],
        "Summary": EXAMPLES[kind][0].upper() + EXAMPLES[kind][1:],
        "Class": camel.removesuffix(kind.capitalize()) or camel,
    }


def _fill(template: str, words: dict[str, str]) -> str:
    text = files("visionkit").joinpath("templates", f"{template}.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(words)


def write_package(folder: Path, texts: dict[str, str]) -> None:
    """Write a folder whole, or not at all.

    Raises:
        UserError: there is something already, or it cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder}: is there already; name another folder with --out")
    whole = Path(os.path.abspath(folder))
    beside = None
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{whole.name}-", dir=whole.parent))
        for path, text in texts.items():
            file = beside / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        beside.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            whole.rmdir()  # an empty one
        beside.rename(whole)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
