"""Finding plugins, describing what they offer, and loading it when it is used. Imports no torch.

A plugin is a module with functions marked ``@hookimpl``: an installed one is named by an entry point of the group
``visionkit``, and any file is one with ``--plugin FILE.py``. Each is loaded in a guard of its own: what is wrong with
one is written down in :attr:`PluginManager.problems` and stops nobody else.
"""

from __future__ import annotations

import ast
import difflib
import errno
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint
from importlib.metadata import entry_points as installed_entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import pluggy

from visionkit import builtins, hookspecs
from visionkit.errors import PluginError, UserError
from visionkit.hookspecs import Component, Kind

KINDS: tuple[str, ...] = get_args(Kind)
GROUP = "visionkit"
FILE_MODULE = "visionkit_file_"  # begins the names of the modules of plugin files

# What a class of each kind must derive from, imported only when one is loaded. Transforms may also be torchvision's.
CONTRACTS = {
    "backbone": "visionkit.model:Backbone",
    "neck": "visionkit.model:Neck",
    "head": "visionkit.model:Head",
    "source": "visionkit.data:Source",
    "evaluator": "visionkit.evaluate:Evaluator",
}


@dataclass
class Listed:
    """A component and how it came here.

    Attributes:
        component: what the plugin says of it.
        distribution: the installed distribution that brings it, or the file given with ``--plugin``.
        plugin: the plugin's module or file.
        load: ``"lazy"`` until it is used, then ``"ok"`` or ``"failed"``.
        error: why it failed.
    """

    component: Component
    distribution: str
    plugin: str
    load: Literal["lazy", "ok", "failed"] = "lazy"
    error: str = ""

    def __str__(self) -> str:
        return self.plugin if self.plugin == self.distribution else f"{self.distribution} (plugin {self.plugin})"


@dataclass(frozen=True)
class Problem:
    """A plugin that is left out, or a name that two plugins claim, and why."""

    plugin: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        origin = "" if self.plugin == self.distribution else f" of {self.distribution}"
        return f"plugin {self.plugin}{origin}: {self.reason}"


class PluginManager:
    """All components at hand, by kind and name.

    Args:
        entry_points: whether installed plugins are looked for.
        files: plugin files, as given with ``--plugin``. There, a component's target may be ``":Class"``: in this file.
            They can import modules of their own folder, as scripts can.

    Attributes:
        problems: what is wrong with plugins, none of which raises until a name is used that depends on it.
    """

    def __init__(self, *, entry_points: bool = True, files: Sequence[str] = ()) -> None:
        self.problems: list[Problem] = []
        self._listed: list[Listed] = []
        self._contested: dict[tuple[str, str], str] = {}
        self._files: dict[str, ModuleType] = {}
        self._pluggy = pluggy.PluginManager(GROUP)
        self._pluggy.add_hookspecs(hookspecs)
        self._register(builtins, "visionkit", "visionkit.builtins")
        if entry_points:
            for entry in sorted(installed_entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
                self._add_entry_point(entry)
        for file in dict.fromkeys(os.path.realpath(f) for f in files):
            self._add_file(Path(file))
        self._find_duplicates()

    @property
    def hook(self) -> Any:
        """pluggy's relay: ``plugins.hook.visionkit_step_done(run=..., step=..., losses=...)`` calls every plugin."""
        return self._pluggy.hook

    def components(self, kind: str | None = None) -> list[Listed]:
        """What there is, of one kind or of all, in the order of kinds and names."""
        chosen = [c for c in self._listed if kind in (None, c.component.kind)]
        return sorted(chosen, key=lambda c: (KINDS.index(c.component.kind), c.component.name))

    def find(self, kind: str, name: str) -> Component:
        """The component of that name; ``module:Class`` names a class directly, installed or in the working directory.

        Raises:
            PluginError: there is none, or two plugins claim the name.
        """
        return self._find(kind, name).component

    def load(self, kind: str, name: str) -> Any:
        """The class (or function) that makes such components; imports it.

        Raises:
            PluginError: as :meth:`find`, or the import failed, or it is no class of that kind.
        """
        listed = self._find(kind, name)
        try:
            made = self._import(listed)
        except (Exception, SystemExit) as error:
            listed.load, listed.error = "failed", explain(error)
            raise PluginError(f"{kind} '{name}' of {listed} cannot be loaded: {listed.error}") from error
        listed.load = "ok"
        return made

    # -- collecting

    def _add_entry_point(self, entry: EntryPoint) -> None:
        distribution = entry.dist.name if entry.dist is not None else entry.value
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:
            self.problems.append(Problem(entry.value, distribution, explain(error)))
            return
        self._register(plugin, distribution, entry.value)

    def _add_file(self, file: Path) -> None:
        shown = os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
        # The name tells files apart that are called alike, and is the same in every process of a run.
        name = f"{FILE_MODULE}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        path = list(sys.path)
        try:
            if not file.is_file():
                raise PluginError("no such file")
            spec = importlib.util.spec_from_file_location(name, file)
            if spec is None or spec.loader is None:
                raise PluginError("not a Python file (its name must end in .py)")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
            if str(file.parent) not in path:
                sys.path.append(str(file.parent))  # at its end: no file there can hide an installed module
            spec.loader.exec_module(module)
            check_imports(file)
        except (Exception, SystemExit) as error:
            sys.modules.pop(name, None)
            sys.path[:] = path
            self.problems.append(Problem(shown, shown, explain(error)))
            return
        self._files[shown] = module
        self._register(module, shown, shown)

    def _register(self, plugin: Any, distribution: str, name: str) -> None:
        """Take a plugin in whole, or not at all."""
        try:
            self._pluggy.register(plugin, name)
            callers = self._pluggy.get_hookcallers(plugin) or []
            check_hooks([caller.name for caller in callers], self._known_hooks())
            described = [c for c in callers if c.name == "visionkit_components"]
            offered = [
                component
                for caller in described
                for impl in caller.get_hookimpls()
                if impl.plugin is plugin
                for component in check_components(impl.function())
            ]
        except (Exception, SystemExit) as error:
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            self.problems.append(Problem(name, distribution, explain(error)))
            return
        self._listed += [Listed(component, distribution, name) for component in offered]

    def _known_hooks(self) -> list[str]:
        return [name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{GROUP}_spec")]

    def _find_duplicates(self) -> None:
        """Nobody can know which of two the user means, so a name that two plugins claim is usable by neither."""
        claims: dict[tuple[str, str], list[Listed]] = {}
        for listed in self._listed:
            claims.setdefault((listed.component.kind, listed.component.name), []).append(listed)
        for (kind, name), rivals in claims.items():
            if len(rivals) > 1:
                reason = f"{kind} '{name}' is declared by {' and by '.join(str(r) for r in rivals)}; remove one of them"
                self.problems.append(Problem(rivals[-1].plugin, rivals[-1].distribution, reason))
                self._contested[kind, name] = reason
                for rival in rivals:
                    rival.load, rival.error = "failed", reason

    # -- looking up

    def _find(self, kind: str, name: str) -> Listed:
        if kind not in KINDS:
            raise PluginError(f"no such kind of component: '{kind}' (kinds: {', '.join(KINDS)})")
        if reason := self._contested.get((kind, name)):
            raise PluginError(reason)
        for listed in self._listed:
            if (listed.component.kind, listed.component.name) == (kind, name):
                return listed
        if re.fullmatch(r"[\w.]+:\w+", name):
            module = name.partition(":")[0]
            direct = Listed(Component(kind, name, name), module, module)  # type: ignore[arg-type]
            self._listed.append(direct)
            return direct
        raise PluginError(self._unknown(kind, name))

    def _unknown(self, kind: str, name: str) -> str:
        names = [c.component.name for c in self.components(kind)]
        parts = [f"no {kind} '{name}'{did_you_mean(name, names)} ({kind}s: {', '.join(names) or 'none'})"]
        if others := [c.component.kind for c in self._listed if c.component.name == name]:
            parts.append(f"'{name}' is a {others[0]}")
        if self.problems:
            parts.append("plugins that failed to load: " + "; ".join(str(p) for p in self.problems))
        return "; ".join(parts)

    def _import(self, listed: Listed) -> Any:
        component = listed.component
        module_name, _, attribute = component.target.partition(":")
        file = self._files.get(listed.plugin)
        if file is not None and module_name in ("", Path(listed.plugin).stem):
            module = file
        else:
            if component.name == component.target and os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())  # a class in a file beside the pipeline needs no packaging
            module = importlib.import_module(module_name)
            if file is not None and file.__file__:
                check_module(module_name.partition(".")[0], Path(file.__file__).parent)
        made = getattr(module, attribute, None)
        if made is None:
            public = [n for n in vars(module) if not n.startswith("_")]
            raise PluginError(f"module '{module_name}' has no '{attribute}'{did_you_mean(attribute, public)}")
        if contract := CONTRACTS.get(component.kind):
            where, _, base = contract.partition(":")
            kind = getattr(importlib.import_module(where), base)
            if isinstance(made, type) and not issubclass(made, kind):
                raise PluginError(f"{attribute} does not derive from {where}.{base}")
            declared = getattr(made, "declaration_problem", None)
            if isinstance(made, type) and declared is not None and (problem := declared()):
                raise PluginError(f"{attribute}: {problem}")
        if not callable(made):
            raise PluginError(f"{attribute} is neither a class nor a function")
        return made


def check_imports(file: Path) -> None:
    """Raise ``PluginError`` if a plugin file was given another module than the one beside it that it names."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        for name in names:
            check_module(name.partition(".")[0], file.parent)


def check_module(name: str, folder: Path) -> None:
    """Raise ``PluginError`` if ``folder`` holds a module of this name, but another one has been imported.

    Modules of the standard library are meant whatever the folder holds.
    """
    beside = next((path for path in (folder / f"{name}.py", folder / name / "__init__.py") if path.is_file()), None)
    if beside is None or name in sys.stdlib_module_names or name not in sys.modules:
        return
    used = getattr(sys.modules[name], "__file__", None) or "a module without a file"
    if os.path.realpath(used) != os.path.realpath(beside):
        raise PluginError(f"module '{name}' beside the plugin is hidden by {used}; give {beside} another name")


def check_hooks(implemented: Iterable[str], known: Sequence[str]) -> None:
    """Raise ``PluginError`` for a hook that does not exist, or for none at all."""
    implemented = list(implemented)
    for name in implemented:
        if name not in known:
            raise PluginError(f"no hook '{name}'{did_you_mean(name, known)} (hooks: {', '.join(known)})")
    if not implemented:
        raise PluginError("implements no hook; mark one with @hookimpl: def visionkit_components(): return [...]")


def check_components(offered: Any) -> list[Component]:
    """What a plugin's hook returned, if every item of it is a sound description."""
    components = list(offered)
    for component in components:
        if not isinstance(component, Component):
            raise PluginError(f"visionkit_components must return Components, not {component!r}")
        for field in fields(component):
            if not isinstance(value := getattr(component, field.name), str):
                raise PluginError(f"{field.name} of a Component must be text, not {value!r}")
        if component.kind not in KINDS:
            near = did_you_mean(component.kind, KINDS)
            raise PluginError(
                f"'{component.name}' is of unknown kind '{component.kind}'{near} (kinds: {', '.join(KINDS)})"
            )
        if not component.name or ":" in component.name:
            raise PluginError(f"a {component.kind} needs a name without a colon, not '{component.name}'")
        if not re.fullmatch(r"[\w.]*:\w+", component.target):
            raise PluginError(f"target of {component.kind} '{component.name}' must be 'module:Class', "
                              f"not '{component.target}'")  # fmt: skip
    return components


@contextmanager
def plugin_errors() -> Iterator[None]:
    """Report what third-party code raises in one line that names the plugin, the file and the line.

    With a plugin file in use, other unexpected exceptions are reported like this too: a wrong value that a component
    returned may break the code that reads it. Without one, they pass.

    Raises:
        PluginError: an exception of a plugin, or one that a plugin may have caused.
    """
    try:
        yield
    except (UserError, MemoryError, BrokenPipeError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        files = [str(m.__file__) for name, m in list(sys.modules.items()) if name.startswith(FILE_MODULE)]
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith((*files, *_packages()))]
        if frames:
            said = " ".join(str(error).split())
            where = f"{frames[-1].filename}:{frames[-1].lineno}"
            raise PluginError(f"plugin code failed at {where}: {type(error).__name__}: {said}") from error
        if not files or isinstance(error, SystemExit):
            raise
        reason = (
            f"{explain(error)}; a component of {', '.join(map(os.path.relpath, files))} may have returned the value"
        )
        raise PluginError(f"{reason} that caused this: see visionkit check") from error


def _packages() -> tuple[str, ...]:
    """Folders of the packages that installed third-party plugins are in."""
    modules = [
        sys.modules.get(entry.module.partition(".")[0])
        for entry in installed_entry_points(group=GROUP)
        if entry.dist is not None and entry.dist.name != "visionkit"
    ]
    return tuple(os.path.join(place, "") for module in modules for place in getattr(module, "__path__", ()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing where no name is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or [k for k in known if name and k.startswith(name)]
    return f"; did you mean '{near[0]}'?" if near else ""


def explain(error: BaseException) -> str:
    """An exception in one line: the file and line it comes from, and what it says."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    text = " ".join(str(error).split())
    if isinstance(error, PluginError):
        return text
    # The innermost frame outside this module and the import system is where the plugin's own code stood.
    machinery = ("<frozen ", __file__, os.path.dirname(importlib.__file__), os.path.dirname(pluggy.__file__))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(machinery)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return f"{where}{type(error).__name__}: {text}"
