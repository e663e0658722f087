"""``visionkit check``: whether a component keeps the contract of its kind."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionkit.cli.options import JsonFile, PluginFiles, plugin_manager, write_text
from visionkit.errors import UserError

if TYPE_CHECKING:
    from rich.status import Status

    from visionkit.data import Source
    from visionkit.plugins import PluginManager
    from visionkit.testing import Report

CHECKED = ("head", "backbone", "neck", "source", "evaluator", "transform", "balancer")
"""The kinds that ``visionkit.testing`` has a kit for; written out, because that imports all of torchvision."""


def command(
    what: Annotated[str, typer.Argument(metavar="NAME", help="A component, module:Class, or FILE.py for all in it.")],
    kind: Annotated[str | None, typer.Option(help="Check only the component of this kind.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument of its constructor.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Samples for a head or evaluator: a source, as {name: coco, images: ...}.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Run slow checks too, such as export.")] = False,
    json_file: JsonFile = None,
    plugin: PluginFiles = None,
) -> None:
    """Check that a component keeps the contract of its kind."""
    from rich.console import Console

    file = what.endswith(".py")
    plugins = plugin_manager([*(plugin or ()), what] if file else plugin)
    found = components_of(what, kind, plugins) if file else named(what, kind, plugins)
    if set_ and len(found) > 1:
        those = ", ".join(f"{its_kind} {name}" for its_kind, name in found)
        choose = f"--plugin {what} and its name" if file else "--kind"
        raise UserError(f"--set is for one component, and '{what}' means several ({those}): choose one with {choose}")
    samples = built_source(source, plugins) if source else None
    console = Console(soft_wrap=True)
    reports = []
    for its_kind, name in found:
        with console.status(name) as status:  # seen on terminals alone

            def progress(check: str, name: str = name, status: Status = status) -> None:
                status.update(f"{name}: {check}")

            try:
                report = check(its_kind, name, set_ or [], plugins, progress, source=samples, full=full)
            except UserError as error:
                if len(found) == 1:
                    raise
                report = not_checked(its_kind, name, str(error))
        reports.append(report)
        console.print(report.table())
        console.print(f"{its_kind} {name}: {report.summary()}", highlight=False)
    if left_out := [] if full else slow_checks(dict.fromkeys(kind for kind, _ in found)):
        console.print(f"not run without --full: {', '.join(left_out)}", highlight=False)
    if json_file:
        write_text(json_file, json.dumps([report.to_dict() for report in reports], indent=1) + "\n")
    if any(report.failed for report in reports):
        raise typer.Exit(1)


def check(
    kind: str,
    name: str,
    settings: Sequence[str],
    plugins: PluginManager,
    progress: Callable[[str], None] | None = None,
    *,
    source: Source | None = None,
    full: bool = True,
) -> Report:
    """The report on one component, built with these settings.

    Raises:
        UserError: it cannot be loaded or checked, whatever its code raises.
    """
    from visionkit.plugins import explain
    from visionkit.testing import CHECKS, KITS, is_slow, name_of

    made = plugins.load(kind, name)
    extra: dict[str, Any] = {"plugins": plugins, "source": source} if kind in ("head", "evaluator") else {}
    if not full:
        extra["only"] = [name_of(check) for check in CHECKS[kind] if not is_slow(check)]
    try:
        return KITS[kind](made, args=arguments(kind, name, made, settings), progress=progress, **extra)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{kind} '{name}' cannot be checked: {explain(error)}") from error


def not_checked(kind: str, name: str, reason: str) -> Report:
    """The report on a component that cannot be checked."""
    from visionkit.testing import CHECKS, CheckResult, Report, name_of

    return Report(kind, name, [CheckResult(name_of(CHECKS[kind][0]), "failed", reason)])


def slow_checks(kinds: Iterable[str]) -> list[str]:
    """Names of the slow checks of these kinds."""
    from visionkit.testing import CHECKS, is_slow, name_of

    return [name_of(check) for kind in kinds for check in CHECKS[kind] if is_slow(check)]


def built_source(text: str, plugins: PluginManager) -> Source:
    """The source that ``--source`` describes: a name, or a mapping with ``name`` as in a pipeline.

    Raises:
        UserError: it is neither, or the source cannot be built.
    """
    from visionkit.config.reader import parse
    from visionkit.plugins import explain

    config, _ = parse(text, "--source", ("source",), lines=False)
    if isinstance(config, str):
        config = {"name": config}
    if not isinstance(config, dict) or not isinstance(name := config.pop("name", None), str):
        raise UserError(f"--source {text}: expected the name of a source, or {{name: ..., and its arguments}}")
    made = plugins.load("source", name)
    try:
        source: Source = made(**conforming("source", name, made, config, "--source"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--source {name}: {explain(error)}") from error
    return source


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


def named(name: str, kind: str | None, plugins: PluginManager) -> list[tuple[str, str]]:
    """Kind and name of every component of that name that there are checks for.

    Raises:
        UserError: there is none of that name, or nothing is checked of its kinds.
    """
    from visionkit.plugins import did_you_mean

    if kind is not None and kind not in CHECKED:
        raise UserError(f"--kind {kind}: there are checks for: {', '.join(CHECKED)}")
    if kind is not None:
        return [(kind, name)]
    if ":" in name:
        return [(kind_of_class(name, plugins), name)]
    listed = [c.component for c in plugins.components()]
    kinds = list(dict.fromkeys(c.kind for c in listed if c.name == name))
    if not kinds:
        known = [c.name for c in listed if c.kind in CHECKED]
        raise UserError(f"no component '{name}'{did_you_mean(name, known)} (see: visionkit plugins)")
    checked: list[tuple[str, str]] = [(kind, name) for kind in kinds if kind in CHECKED]
    if not checked:
        raise UserError(f"'{name}' is of kind '{kinds[0]}'; there are checks for: {', '.join(CHECKED)}")
    if len(checked) > 1:
        both = ", ".join(kind for kind, _ in checked)
        print(f"note: '{name}' is the name of several components ({both}); choose one with --kind", file=sys.stderr)
    return checked


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
    from visionkit.config.reader import parse

    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UserError(f"--set {setting}: expected KEY=VALUE")
        given[key], _ = parse(text, f"--set {setting}", (key,), lines=False)
    return conforming(kind, name, made, given, "--set") if given else {}


def conforming(kind: str, name: str, made: Any, args: dict[str, Any], option: str) -> dict[str, Any]:
    """Arguments of a constructor that were given with a command line option, checked against its signature."""
    from pydantic import TypeAdapter

    from visionkit.config.arguments import signature_schema
    from visionkit.config.check import Finding, conform

    schema = signature_schema(kind, made)
    try:
        return conform(TypeAdapter(schema), schema, args, f"{kind} '{name}'")
    except Finding as finding:
        raise UserError(f"{option}: {finding.message}") from None
