"""The errors a user can meet: one line each, a stable code and an exit status.

A code never changes its meaning; docs/errors.md lists them all and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Code(Enum):
    """A stable error code: its identifier, the exit status of the commands, and what it means."""

    # 2: the tool could not use what it was given.
    BAD_OPTION = ("E0101", 2, "an option or argument has a value that cannot be used")
    FILE_MISSING = ("E0102", 2, "a file does not exist or cannot be read")
    FILE_DAMAGED = ("E0103", 2, "a file is empty, truncated or otherwise damaged")
    FOREIGN_FILE = ("E0104", 2, "a file is whole, but not of a kind that can be read here")
    PICKLED = ("E0105", 2, "a file holds pickled Python objects, and reading it would run code")
    WRONG_SHAPE = ("E0106", 2, "an array does not have the shape that the model takes")
    NOT_FINITE = ("E0107", 2, "a parameter or an input is NaN or infinite")
    OUTPUT_EXISTS = ("E0108", 2, "the output exists and --force was not given")
    OUTPUT_IS_INPUT = ("E0109", 2, "the output is the model itself")
    NO_FOLDER = ("E0110", 2, "the folder of the output does not exist or cannot be written")
    MISSING_PACKAGE = ("E0111", 2, "a package that this needs is not installed")
    AMBIGUOUS = ("E0112", 2, "more than one reading is possible and an argument must say which")
    BAD_GRAPH = ("E0113", 2, "a graph contradicts itself")
    BAD_DATA = ("E0114", 2, "a data file or array cannot be used as input")
    OTHER_MODEL = ("E0115", 2, "a file was exported from another model")
    # 1: everything was understood, and the answer is no.
    UNSUPPORTED_LAYER = ("E0201", 1, "a layer of the model is not supported")
    UNKNOWN_NEURON = ("E0202", 1, "a neuron class has no registered reader")
    CAPTURE_REFUSED = ("E0203", 1, "the model does something that cannot be captured as one time step")
    CAPTURE_MISMATCH = ("E0204", 1, "the captured graph does not do what the model does")
    FOLD_MISMATCH = ("E0205", 1, "a folded graph does not fire as the graph before it")
    TARGET_CANNOT_HOLD = ("E0206", 1, "the chosen file format or dialect cannot hold this model exactly")
    RUNTIME_CANNOT_RUN = ("E0207", 1, "the chosen runtime cannot run this model exactly")
    EXPORT_DIVERGES = ("E0208", 1, "an exported file does not fire as the model, and was not kept")
    # 3: a fault of ours.
    FAULT = ("E0301", 3, "a fault in dalif_deploy itself")

    def __init__(self, identifier: str, exit_status: int, meaning: str) -> None:
        self.identifier = identifier
        self.exit_status = exit_status
        self.meaning = meaning


class DalifError(Exception):
    """What every public function raises for bad input or a refusal.

    Parameters: `code`, one of `Code`; `message`, one line that says what, where, why and the mend; `lines`, code
    to write where that is the mend, shown below the message as it is; `details`, plain values for programs, where
    there is more to tell than fits a line (the commands print them with --json).
    """

    def __init__(
        self, code: Code, message: str, lines: tuple[str, ...] = (), *, details: Mapping[str, Any] | None = None
    ) -> None:
        # One line is a promise of the commands; text quoted from other libraries may have several.
        self.message = " ".join(message.split())
        self.code = code
        self.lines = lines
        self.details = details
        super().__init__("\n".join((f"[{code.identifier}] {self.message}", *lines)))
