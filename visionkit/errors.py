"""Errors that are the user's to mend: one clear message, exit status 2, no stack trace."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave is wrong. The message says what was seen, where, and what is allowed."""


class PipelineError(UserError):
    """A pipeline file is wrong; the message starts with ``file:line``."""


class DataError(UserError):
    """An image or annotation is wrong; the message names the file and the id."""


class PluginError(UserError):
    """A plugin is missing, broken or declared twice."""


class RunError(UserError):
    """A run folder or checkpoint is missing, damaged or belongs to another pipeline."""
