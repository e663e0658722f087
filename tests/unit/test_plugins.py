"""Plugins: found, described, isolated, loaded when used."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

import pytest

import visionkit.plugins
from visionkit.errors import PluginError
from visionkit.plugins import PluginManager, plugin_errors

GOOD = """
    from visionkit import Component, Transform, hookimpl

    class Mirror(Transform):
        def __call__(self, sample):
            return sample

    @hookimpl
    def visionkit_components():
        return [Component("transform", "mirror", ":Mirror", "left is right")]
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, code: str) -> str:
        (tmp_path / name).write_text(textwrap.dedent(code))
        return str(tmp_path / name)

    return write


def manager(*files: str) -> PluginManager:
    return PluginManager(entry_points=False, files=files)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Pretend that distributions are installed: ``install(one="module_a", two="module_b")``."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(**modules: str) -> None:
        entries = []
        for name, module in modules.items():
            folder = tmp_path / f"{name}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
            entry: Any = EntryPoint(name, module, "visionkit")
            entries.append(entry._for(Distribution.at(folder)))
        monkeypatch.setattr(visionkit.plugins, "installed_entry_points", lambda group: entries)

    return install


def test_the_core_describes_its_own_components() -> None:
    listed = {(c.component.kind, c.component.name): c for c in manager().components()}
    assert {("source", "coco"), ("transform", "hflip"), ("evaluator", "semantic"), ("balancer", "fixed")} <= set(listed)
    assert all(c.distribution == "visionkit" and c.load == "lazy" and c.component.summary for c in listed.values())


def test_every_component_of_the_distribution_can_be_loaded() -> None:
    plugins = PluginManager()
    assert not plugins.problems
    for listed in plugins.components():
        plugins.load(listed.component.kind, listed.component.name)
    assert {c.load for c in plugins.components()} == {"ok"}


def test_a_file_is_a_plugin(write: Callable[[str, str], str]) -> None:
    plugins = manager(write("mine.py", GOOD))
    assert plugins.find("transform", "mirror").summary == "left is right"
    (listed,) = [c for c in plugins.components("transform") if c.component.name == "mirror"]
    assert (listed.load, Path(listed.distribution).name) == ("lazy", "mine.py")
    assert plugins.load("transform", "mirror").__name__ == "Mirror"
    assert listed.load == "ok"


def test_a_file_may_name_itself_in_a_target(write: Callable[[str, str], str]) -> None:
    file = write("mine.py", GOOD.replace('":Mirror"', '"mine:Mirror"'))
    assert manager(file, file).load("transform", "mirror").__name__ == "Mirror"


def test_classes_of_a_plugin_file_can_be_pickled(write: Callable[[str, str], str]) -> None:
    import pickle

    made = manager(write("mine.py", GOOD)).load("transform", "mirror")
    assert isinstance(pickle.loads(pickle.dumps(made())), made)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def broken(:\n", "broken.py:1: SyntaxError"),
        ("import no_such_module_at_all\n", "broken.py:1: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("\n\nraise RuntimeError('out of\\norder')", "broken.py:3: RuntimeError: out of order"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("x = 1", "implements no hook"),
        ("from visionkit import hookimpl\n@hookimpl\ndef visionkit_components(): return [1]", "must return Components"),
        ("from visionkit import hookimpl\n@hookimpl\ndef visionkit_components(): 1 / 0", ":3: ZeroDivisionError"),
        ("from visionkit import hookimpl\n@hookimpl\ndef visionkit_components(what): return []", "what"),
        (
            "from visionkit import hookimpl\n@hookimpl\ndef visionkit_component(): return []",
            "no hook 'visionkit_component'; did you mean 'visionkit_components'?",
        ),
        (
            "from visionkit import hookimpl, Component\n@hookimpl\ndef visionkit_components():\n"
            "    return [Component('haed', 'x', 'a:B')]",
            "'x' is of unknown kind 'haed'; did you mean 'head'?",
        ),
        (
            "from visionkit import hookimpl, Component\n@hookimpl\ndef visionkit_components():\n"
            "    return [Component('head', 'x', 'a.B')]",
            "target of head 'x' must be 'module:Class', not 'a.B'",
        ),
    ],
)
def test_a_broken_plugin_is_left_out_and_stops_nobody(write: Callable[[str, str], str], code: str, reason: str) -> None:
    plugins = manager(write("broken.py", code), write("mine.py", GOOD))
    (problem,) = plugins.problems
    assert reason in str(problem)
    assert "broken.py" in str(problem)
    assert "\n" not in str(problem)
    assert plugins.load("transform", "mirror")
    assert not any("broken.py" in c.plugin for c in plugins.components())
    with pytest.raises(PluginError, match=r"plugins that failed to load: plugin .*broken.py"):
        plugins.find("head", "in_the_broken_one")


def test_a_missing_plugin_file_is_a_problem() -> None:
    (problem,) = manager("nowhere/to_be_found.py").problems
    assert "to_be_found.py: no such file" in str(problem)


def test_two_plugins_with_one_name(write: Callable[[str, str], str], install: Callable[..., None]) -> None:
    write("rival_a.py", GOOD.replace(":Mirror", "rival_a:Mirror"))
    write("rival_b.py", GOOD.replace(":Mirror", "rival_b:Mirror"))
    install(alpha="rival_a", beta="rival_b")
    plugins = PluginManager()
    (problem,) = plugins.problems
    said = "transform 'mirror' is declared by alpha (plugin rival_a) and by beta (plugin rival_b)"
    assert said in str(problem)
    with pytest.raises(PluginError) as error:
        plugins.load("transform", "mirror")
    assert said in str(error.value)
    assert plugins.find("source", "coco")  # the others are as they were


def test_an_installed_plugin_that_cannot_be_imported_names_its_distribution(
    write: Callable[[str, str], str], install: Callable[..., None]
) -> None:
    write("half.py", "import missing_half_of_it")
    install(alpha="half", beta="not_there_at_all")
    first, second = (str(p) for p in PluginManager().problems)
    assert first.startswith("plugin half of alpha: ")
    assert "half.py:1: ModuleNotFoundError: No module named 'missing_half_of_it'" in first
    assert second == "plugin not_there_at_all of beta: ModuleNotFoundError: No module named 'not_there_at_all'"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no evaluator 'coco_box'; did you mean 'coco_bbox'\? \(evaluators: "):
        manager().find("evaluator", "coco_box")
    with pytest.raises(PluginError, match="'hflip' is a transform"):
        manager().find("head", "hflip")


def test_a_class_in_the_working_directory_needs_no_packaging(
    write: Callable[[str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("lying_about.py", GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    plugins = manager()
    assert plugins.load("transform", "lying_about:Mirror").__name__ == "Mirror"
    with pytest.raises(PluginError, match="has no 'Miror'; did you mean 'Mirror'"):
        plugins.load("transform", "lying_about:Miror")
    with pytest.raises(PluginError, match=r"does not derive from visionkit.model.Head"):
        plugins.load("head", "lying_about:Mirror")
    with pytest.raises(PluginError, match="No module named 'lying_around'"):
        plugins.load("head", "lying_around:Mirror")


def test_a_component_that_cannot_be_imported_says_why(write: Callable[[str, str], str]) -> None:
    plugins = manager(write("mine.py", GOOD.replace(":Mirror", ":Miror")))
    with pytest.raises(PluginError, match=r"transform 'mirror' of .*mine.py cannot be loaded: .*did you mean 'Mirror'"):
        plugins.load("transform", "mirror")
    (listed,) = [c for c in plugins.components("transform") if c.component.name == "mirror"]
    assert listed.load == "failed"
    assert "Miror" in listed.error


def test_life_cycle_hooks_are_called(write: Callable[[str, str], str], tmp_path: Path) -> None:
    code = """
        from visionkit import hookimpl
        seen = []

        @hookimpl
        def visionkit_step_done(step, losses):
            seen.append((step, dict(losses)))
    """
    plugins = manager(write("logger.py", code))
    assert not plugins.problems
    plugins.hook.visionkit_step_done(run=None, step=3, losses={"a/b": 1.0})
    (module,) = [m for name, m in sys.modules.items() if name.startswith("visionkit_file_logger_")
                 and m.__file__ == str(tmp_path / "logger.py")]  # fmt: skip
    assert module.seen == [(3, {"a/b": 1.0})]


def test_a_plugin_file_imports_modules_of_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, elsewhere = tmp_path / "plugin", tmp_path / "elsewhere"
    (folder / "beside_package").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "beside_one.py").write_text(textwrap.dedent(GOOD))
    (folder / "beside_package" / "__init__.py").write_text("VALUE = 1")
    (folder / "beside_late.py").write_text("from beside_one import Mirror as Late")
    code = """
        import beside_one
        from beside_package import VALUE
        from visionkit import Component, hookimpl

        @hookimpl
        def visionkit_components():
            targets = ("beside_one:Mirror", "beside_late:Late")
            return [Component("transform", target.lower().replace(":", "_"), target, "") for target in targets]
    """
    (folder / "register.py").write_text(textwrap.dedent(code))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(elsewhere)
    plugins = manager("../plugin/register.py")
    assert plugins.problems == []
    assert plugins.load("transform", "beside_one_mirror").__name__ == "Mirror"
    assert plugins.load("transform", "beside_late_late").__name__ == "Mirror"
    assert sys.path[-1] == str(folder)


def test_modules_of_one_name_in_the_folders_of_two_plugins_are_not_confused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "beside_both.py").write_text(f"NAME = {name!r}")
        (tmp_path / name / "json.py").write_text("raise RuntimeError('not this one')")
        files.append(tmp_path / name / f"plugin_{name}.py")
        files[-1].write_text("import json\nimport beside_both\n" + textwrap.dedent(GOOD).replace("mirror", name))
    plugins = manager(*map(str, files))
    assert plugins.load("transform", "one").__name__ == "Mirror"
    (problem,) = plugins.problems
    assert problem.plugin.endswith("plugin_two.py")
    assert "module 'beside_both' beside the plugin is hidden by" in problem.reason
    with pytest.raises(PluginError, match="module 'beside_both' beside the plugin is hidden"):
        plugins.load("transform", "two")


# -- code of plugins that fails


@pytest.mark.parametrize("code", ["1 / 0", "raise SystemExit(3)", "raise ValueError('two\\nlines')"])
def test_what_plugin_code_raises_is_one_line_with_its_place(code: str, write: Callable[[str, str], str]) -> None:
    file = write("failing.py", GOOD.replace("return sample", code))
    mirror = manager(file).load("transform", "mirror")
    with pytest.raises(PluginError, match=r"plugin code failed at .*failing.py:6: ") as caught, plugin_errors():
        mirror()(None)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is not None


def test_other_exceptions_pass_unless_a_plugin_file_may_have_caused_them(
    write: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(visionkit.plugins.FILE_MODULE)]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(KeyError), plugin_errors():
        raise KeyError("x")
    manager(write("odd.py", GOOD))
    with (
        pytest.raises(PluginError, match=r"KeyError: 'x'; a component of .*odd.py .*: see visionkit check"),
        plugin_errors(),
    ):
        raise KeyError("x")
    with pytest.raises(SystemExit), plugin_errors():  # how commands end
        sys.exit(0)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ("task = 3", "'task' is 3; it must be text"),
        ("makes = int", "must be a class derived from Prediction"),
        ("output = None", "must be a class derived from Output"),
        ("needs = {'boxes': 3}", "a mapping from names to a class derived from Output"),
        ("loss_names = 'loss'", "'loss_names' is 'loss'; it must be a tuple of names"),
        ("evaluators = ['semantic']", "it must be a tuple of names"),
        ("exportable = 'yes'", "it must be True or False"),
        ("del task", "it has no class attribute 'task'"),
    ],
)
def test_class_attributes_of_the_wrong_type_are_errors(
    declared: str, says: str, write: Callable[[str, str], str]
) -> None:
    file = write(
        "declared.py",
        f"""
        from visionkit import Component, Head, hookimpl
        from visionkit.types import BoxPrediction

        class Odd(Head):
            task = "boxes"
            makes = BoxPrediction
            {declared}

        @hookimpl
        def visionkit_components():
            return [Component("head", "odd", ":Odd")]
    """,
    )
    with pytest.raises(PluginError) as caught:
        manager(file).load("head", "odd")
    assert says in str(caught.value)


@pytest.mark.parametrize("field", ["kind", "name", "target", "summary"])
def test_descriptors_hold_text(field: str, write: Callable[[str, str], str]) -> None:
    given = {"kind": "'head'", "name": "'x'", "target": "':X'", "summary": "''", field: "{}"}
    arguments = ", ".join(f"{key}={value}" for key, value in given.items())
    file = write(
        "fields.py",
        f"""
        from visionkit import Component, hookimpl

        @hookimpl
        def visionkit_components():
            return [Component({arguments})]
    """,
    )
    (problem,) = manager(file).problems
    assert f"{field} of a Component must be text, not {{}}" in str(problem)
