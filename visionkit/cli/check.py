"""``visionkit check``: whether a component keeps the contract of its kind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionkit.cli.options import JsonFile, PluginFiles, plugin_manager, write_text
from visionkit.errors import UserError

if TYPE_CHECKING:
    from rich.status import Status

    from visionkit.plugins import PluginManager
    from visionkit.testing import Report

CHECKED = ("head", "backbone", "neck", "source", "evaluator", "transform", "balancer")
"""The kinds that ``visionkit.testing`` has a kit for; written out, because that imports all of torchvision."""


def command(
    what: Annotated[str, typer.Argument(metavar="NAME", help="A component, module:Class, or FILE.py for all in it.")],
    kind: Annotated[str | None, typer.Option(help="Its kind, where there are several of that name.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument of its constructor.")
    ] = None,
    json_file: JsonFile = None,
    plugin: PluginFiles = None,
) -> None:
    """Check that a component keeps the contract of its kind."""
    from rich.console import Console

    file = what.endswith(".py")
    plugins = plugin_manager([*(plugin or ()), what] if file else plugin)
    found = components_of(what, kind, plugins) if file else [component(what, kind, plugins)]
    if set_ and len(found) > 1:
        raise UserError(f"--set is for one component, and {what} has {len(found)}: choose one with --plugin {what} and "
                        "its name")  # fmt: skip
    console = Console(soft_wrap=True)
    reports = []
    for its_kind, name in found:
        with console.status(name) as status:  # seen on terminals alone

            def progress(check: str, name: str = name, status: Status = status) -> None:
                status.update(f"{name}: {check}")

            report = check(its_kind, name, set_ or [], plugins, progress)
        reports.append(report)
        console.print(report.table())
        console.print(f"{its_kind} {name}: {report.summary()}", highlight=False)
    if json_file:
        write_text(json_file, json.dumps([report.to_dict() for report in reports], indent=1) + "\n")
    if any(report.failed for report in reports):
        raise typer.Exit(1)


def check(
    kind: str, name: str, settings: Sequence[str], plugins: PluginManager, progress: Callable[[str], None] | None = None
) -> Report:
    """The report on one component, built with these settings."""
    from visionkit.testing import KITS

    made = plugins.load(kind, name)
    extra: dict[str, Any] = {"plugins": plugins} if kind in ("head", "evaluator") else {}
    return KITS[kind](made, args=arguments(kind, name, made, settings), progress=progress, **extra)


def components_of(file: str, kind: str | None, plugins: PluginManager) -> list[tuple[str, str]]:
    """Kind and name of every component that a plugin file offers and that there are checks for.

    Raises:
        UserError: the file cannot be loaded, or offers none.
    """
    for problem in plugins.problems:
        if os.path.realpath(problem.plugin) == os.path.realpath(file):
            raise UserError(str(problem))
    mine = [c.component for c in plugins.components() if os.path.realpath(c.plugin) == os.path.realpath(file)]
    found = [(str(c.kind), c.name) for c in mine if c.kind in CHECKED and kind in (None, c.kind)]
    if not found:
        offered = ", ".join(f"{c.kind} {c.name}" for c in mine) or "nothing"
        raise UserError(f"{file} offers {offered}; there are checks for: {', '.join(CHECKED)}")
    return found


def component(name: str, kind: str | None, plugins: PluginManager) -> tuple[str, str]:
    """Kind and name of one component.

    Raises:
        UserError: there is none of that name, there are several, or nothing is checked of its kind.
    """
    from visionkit.plugins import did_you_mean

    if kind is not None and kind not in CHECKED:
        raise UserError(f"--kind {kind}: there are checks for: {', '.join(CHECKED)}")
    if kind is not None:
        return kind, name
    if ":" in name:
        return kind_of_class(name, plugins), name
    listed = [c.component for c in plugins.components()]
    fitting = [c.kind for c in listed if c.name == name]
    if len(fitting) > 1:
        raise UserError(f"'{name}' is the name of several kinds ({', '.join(fitting)}): choose one with --kind")
    if not fitting:
        known = [c.name for c in listed if c.kind in CHECKED]
        raise UserError(f"no component '{name}'{did_you_mean(name, known)} (see: visionkit plugins)")
    if fitting[0] not in CHECKED:
        raise UserError(f"'{name}' is of kind '{fitting[0]}'; there are checks for: {', '.join(CHECKED)}")
    return fitting[0], name


def kind_of_class(name: str, plugins: PluginManager) -> str:
    """The kind whose contract ``module:Class`` derives from."""
    from visionkit.data import Source, Transform
    from visionkit.evaluate import Evaluator
    from visionkit.model import Backbone, Head, Neck
    from visionkit.train.balance import Balancer

    bases = {"head": Head, "backbone": Backbone, "neck": Neck, "source": Source, "evaluator": Evaluator,
             "transform": Transform, "balancer": Balancer}  # fmt: skip
    made = plugins.load("transform", name)  # the kind that asks for no base class
    for kind in CHECKED:
        if isinstance(made, type) and issubclass(made, bases[kind]):
            return kind
    raise UserError(f"{name} derives from none of the contracts ({', '.join(b.__name__ for b in bases.values())}); "
                    "choose with --kind")  # fmt: skip


def arguments(kind: str, name: str, made: Any, settings: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` settings as the arguments of a constructor, checked against its signature.

    Raises:
        UserError: it takes no such argument, or another type.
    """
    from pydantic import TypeAdapter

    from visionkit.config.arguments import signature_schema
    from visionkit.config.check import Finding, conform
    from visionkit.config.reader import parse

    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UserError(f"--set {setting}: expected KEY=VALUE")
        given[key], _ = parse(text, f"--set {setting}", (key,), lines=False)
    if not given:
        return {}
    schema = signature_schema(kind, made)
    try:
        return conform(TypeAdapter(schema), schema, given, f"{kind} '{name}'")
    except Finding as finding:
        raise UserError(f"--set: {finding.message}") from None
