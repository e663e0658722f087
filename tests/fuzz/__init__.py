"""A fuzzer for everything that reads a file.

A surface is one kind of input: a module in ``tests/fuzz/surfaces`` with four functions::

    def seeds(folder: Path) -> list[Path]        # writes valid inputs, each a folder of files
    def mutate(rng: Random, folder: Path) -> None   # damages a copy of one of them
    def run(folder: Path) -> None                # reads it through Python
    def command(folder: Path) -> list[str]       # the same as a command line, without ``visionkit``

``run`` returns if the input was accepted, raises ``UserError`` if it was refused, and ``WrongResult`` if it was
accepted and the result is wrong. To add a surface, add such a module.

Every input is read in a forked process that has imported everything, with a limit on time and memory. A stack trace, a
crash, a hang of more than 20 s, more than 2 GB of memory, a message of more than one line, or a wrong result is a bug.
The input is a function of the surface, the seed and the index, so that every bug can be replayed::

    python -m tests.fuzz                                       # 1,000 inputs on each surface, 50 of them by command
    python -m tests.fuzz --surface coco --inputs 200 --seed 7
    python -m tests.fuzz --surface coco --seed 7 --index 123   # replay one input, with the stack trace
    python -m tests.fuzz --surface coco --replay FOLDER        # replay the input of a folder

The folder of a bug, ``runs/fuzz/SURFACE/SEED-INDEX``, holds the input and a report with the line that replays it.
"""

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ.setdefault(_variable, "1")  # before any library is imported: a process that forks must have one thread
