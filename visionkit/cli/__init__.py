"""The command line: one file a command, and none of them imports torch until it runs.

To add a command, write ``visionkit/cli/NAME.py`` (``coco-eval`` lives in ``coco_eval.py``) with one function
``command`` and put its name into ``COMMANDS``::

    from __future__ import annotations

    from typing import Annotated

    import typer

    from visionkit.cli.options import Overrides, PipelineName, PluginFiles, read_pipeline


    def command(
        pipeline: PipelineName,
        out: Annotated[str, typer.Option("--out", help="The folder to write.")],
        set_: Overrides = None,
        plugin: PluginFiles = None,
    ) -> None:
        \"\"\"Train a pipeline.\"\"\"          # the first line is the summary in ``visionkit --help``
        description, plugins = read_pipeline(pipeline, set_, plugin)  # first: its errors need none of the imports below

        from visionkit.train import train  # whatever is heavy (torch, cv2, pydantic) is imported in here

        ...

The module itself imports only the standard library, typer, ``visionkit.cli.options`` and ``visionkit.errors``, because
``visionkit --help`` imports every command's module to list it. A command raises ``UserError`` for what its user can
mend, ends with ``raise typer.Exit(2)`` where it has said so itself, and otherwise just returns.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from visionkit import __version__
from visionkit.errors import UserError
from visionkit.plugins import plugin_errors

COMMANDS = (
    "demo",
    "shapes",
    "train",
    "eval",
    "predict",
    "validate",
    "check",
    "profile",
    "conflicts",
    "plugins",
    "pipelines",
    "new-plugin",
    "schema",
    "coco-eval",
    "panoptic-convert",
    "import-weights",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit: 0 done, 2 the user's mistake, 130 interrupted, 1 anything else."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata; pixels that cannot be decoded are an error
    try:
        try:
            with plugin_errors():
                run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has left. Python's own flush at exit must not complain about that either.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # a name that was given can be that of no file
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            traceback.print_exc()
            sys.exit(1)
        # Written by a library or a plugin: what visionkit writes itself raises a UserError.
        print(f"error: {error.filename or 'a file'}: cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def run(arguments: list[str]) -> None:
    """Run one command line; what goes wrong is raised, ``SystemExit`` among it."""
    if arguments == ["plugins"]:
        # To read options, typer imports pydantic, which takes longer than all the rest of this command.
        importlib.import_module("visionkit.cli.plugins").command()
        sys.exit(0)
    # Only the command that is asked for is imported; help and misspelt names need them all.
    only = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    build_app(only)(arguments, prog_name="visionkit")


def build_app(commands: Sequence[str] = COMMANDS) -> typer.Typer:
    """The typer application of these commands."""
    # No rich markup: importing it takes as long as all the rest of --help.
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_root)
    for name in commands:
        command = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").command
        app.command(name, short_help=(command.__doc__ or "").partition("\n")[0])(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"visionkit {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """One shared backbone, many heads: plugin-based multi-task vision."""
