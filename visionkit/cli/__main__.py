"""``python -m visionkit.cli``."""

from visionkit.cli import main

main()
