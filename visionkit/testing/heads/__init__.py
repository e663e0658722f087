"""What every head promises, in the order in which it is checked."""

from visionkit.testing.heads import (
    accelerator,
    declaration,
    learning,
    losses,
    memory,
    phases,
    predictions,
    running,
    state,
)

CHECKS = (
    *declaration.CHECKS,
    *losses.CHECKS,
    *learning.CHECKS,
    *predictions.CHECKS,
    *state.CHECKS,
    *phases.CHECKS,
    *memory.CHECKS,
    *running.CHECKS,
    *accelerator.CHECKS,
)
