"""``python -m visionkit``."""

from visionkit.cli import main

main()
