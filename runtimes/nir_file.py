"""What the NIR simulators share: opening the file, and stepping a simulator's own modules through time.

A simulator brings the modules: it reads every node's parameters itself, with its own neuron classes. Their
wiring is here: nodes run in topological order, the inputs of a node are added in the order of the file's
edges, and every neuron layer's spikes are recorded at every step. The packages' own wiring adds in an order
that differs from process to process, and one of them runs nodes before their inputs are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import nir
import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.dialects import Dialect
from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nir_io import open_nir
from dalif_deploy.nir_rules import findings, sanitized, summary
from dalif_deploy.operators import reduce_time
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes.stepping import require_codes

INSTALL = "pip install -r requirements/simulators.txt && pip install --no-deps -r requirements/simulators-no-deps.txt"
"""The command that installs the simulators: their own requirements cannot be met in one environment."""

NIRTORCH_ORDER = "nodes are wired by dalif_deploy, since nirtorch adds three branches or more in an order that varies"
"""What is steered round where a simulator reads files with nirtorch."""

Step = Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]
"""One node, one timestep: input and state (None at first) to output and next state."""


@dataclass(frozen=True)
class NirFile:
    """An exported .nir file, read."""

    path: Path
    graph: nir.NIRGraph
    metadata: FileMetadata

    @classmethod
    def open(cls, path: str | Path) -> NirFile:
        """Raises `DalifError` (FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE)."""
        graph, metadata = open_nir(path)
        return cls(Path(path), graph, metadata)

    @property
    def dialect(self) -> str:
        """The name of the dialect that it was written in."""
        return self.metadata.extra.get("dialect", "")

    @property
    def exact(self) -> bool:
        """Whether its sums are exact, and its input whole numbers."""
        return self.metadata.precision != "float32"

    def check(self, dialect: Dialect) -> None:
        """Raises `DalifError`: RUNTIME_CANNOT_RUN, naming the node, for what the simulator would misread or refuse;
        FILE_DAMAGED for a precision that no .nir has, and for an exact file that makes other numbers of codes."""
        precision, encoding = self.metadata.precision, self.metadata.input.encoding
        if precision not in ("float32", "exact"):
            raise DalifError(
                Code.FILE_DAMAGED, f"{self.path}: says that its precision is {precision!r}, which no .nir has"
            )
        if self.exact and encoding.kind == "uint8" and encoding != Encoding(kind="uint8"):
            raise DalifError(
                Code.FILE_DAMAGED,
                f"{self.path}: says that its sums are exact, and its encoding scales the codes; export it again",
            )
        if found := findings(self.graph, dialect):
            raise DalifError(
                Code.RUNTIME_CANNOT_RUN,
                f"{self.path}: {dialect.name} does not read it as it is meant: {summary(found)}",
            )


def missing(*packages: str) -> str | None:
    """None if all packages are installed, else the command that installs the simulators."""
    return None if all(find_spec(package) for package in packages) else INSTALL


def require(name: str, command: str | None) -> None:
    """Raises `DalifError` (MISSING_PACKAGE) with `command`, unless it is None."""
    if command is not None:
        raise DalifError(Code.MISSING_PACKAGE, f"the simulator {name} is not installed; install it with: {command}")


def installed_version(package: str) -> str:
    """The version of an installed package, "(unknown version)" where it does not say."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown version)"


@contextmanager
def importing(file: NirFile, simulator: str) -> Iterator[None]:
    """Around a simulator's own reading of the file: its exceptions become a refusal that quotes them.

    Building layers draws random numbers before the file's weights replace them: the caller's stay as they are.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except Exception as error:  # whatever a third-party reader raises is its refusal
        raise DalifError(
            Code.RUNTIME_CANNOT_RUN,
            f"{file.path}: {simulator} does not take this file: {type(error).__name__}: {error}",
        ) from error


def stateless(module: torch.nn.Module) -> Step:
    """A module without state as a step."""
    return lambda x, state: (module(x), None)


def itself(module: Step) -> Step:
    """A module that takes its state and returns it is a step."""
    return module


def submodules(network: torch.nn.Module, file: NirFile) -> dict[str, torch.nn.Module]:
    """The modules that nirtorch made of a file's nodes, by the node's name; none for input and output."""
    return {
        name: network.get_submodule(sanitized(name))
        for name, node in file.graph.nodes.items()
        if not isinstance(node, nir.Input | nir.Output)
    }


def qualified_names(modules: list[torch.nn.Module]) -> str:
    """The classes of modules, in full, each once, sorted, with commas."""
    return ", ".join(sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in modules}))


class Stepper:
    """Runs a file's network step by step on a simulator's modules.

    `steps`: one for every node but input and output. `dtype`: what the modules compute in.
    """

    def __init__(self, file: NirFile, steps: Mapping[str, Step], dtype: torch.dtype) -> None:
        self._file = file
        self._steps = steps
        self.dtype = dtype
        self._sources: dict[str, list[str]] = {name: [] for name in file.graph.nodes}
        for source, target in file.graph.edges:
            self._sources[target].append(source)
        try:
            self._order = tuple(TopologicalSorter(self._sources).static_order())
        except CycleError as error:
            raise DalifError(Code.RUNTIME_CANNOT_RUN, f"{file.path}: its nodes are in a cycle") from error
        self._layers = [layer.name for layer in file.metadata.layers]
        self._output = next(name for name, node in file.graph.nodes.items() if isinstance(node, nir.Output))

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """One batch from the initial state; logits in the modules' dtype.

        Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE; RUNTIME_CANNOT_RUN if the simulator fails).
        """
        spec = self._file.metadata.input
        if self._file.exact:
            require_codes(spec.encoding, batch)
        inputs = torch.from_numpy(spec.module_input(batch)).to(self.dtype)
        state: dict[str, Any] = {}
        spikes: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in self._layers}
        outputs = []
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.backends.nnpack.flags(enabled=False):
            for t in range(spec.timesteps):
                values = self._step(inputs[:, t] if spec.temporal else inputs, state)
                for name in self._layers:
                    spikes[name].append(self._fired(name, values[name]))
                outputs.append(values[self._output].numpy().copy())
        return Recording(
            {name: SpikeTrain.pack(np.stack(steps, axis=1)) for name, steps in spikes.items()},
            reduce_time(np.stack(outputs, axis=1), self._file.metadata.readout),
        )

    def _step(self, x: torch.Tensor, state: dict[str, Any]) -> dict[str, torch.Tensor]:
        values: dict[str, torch.Tensor] = {}
        for name in self._order:
            node = self._file.graph.nodes[name]
            if isinstance(node, nir.Input):
                values[name] = x
                continue
            total = values[self._sources[name][0]]
            for source in self._sources[name][1:]:
                total = total + values[source]
            if isinstance(node, nir.Output):
                values[name] = total
                continue
            try:
                values[name], state[name] = self._steps[name](total, state.get(name))
            except (RuntimeError, TypeError, ValueError) as error:  # torch: shapes that do not meet, strides of 1.0
                raise DalifError(
                    Code.RUNTIME_CANNOT_RUN, f"{self._file.path}: node '{name}' cannot be run: {error}"
                ) from error
        return values

    def _fired(self, name: str, values: torch.Tensor) -> NDArray[np.bool_]:
        fired = values != 0.0
        if not torch.equal(fired.to(values.dtype), values):
            raise DalifError(
                Code.RUNTIME_CANNOT_RUN, f"{self._file.path}: layer '{name}' gave something else than 0 and 1"
            )
        return fired.numpy()


class NirSimulator:
    """A simulator that has read a file, on the CPU: how its modules are stepped, and what is said of them.

    `name`: as the user gives it to --runtime, and the package's. `title`: as the package writes itself.
    `modules`: the simulator's own, for every node but input and output. `stepped`: a module with state as a step.
    `notes`: what is steered round. `neuron_of`: the neuron in the module of a layer, where that is a wrapper.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self,
        file: NirFile,
        modules: Mapping[str, torch.nn.Module],
        *,
        stepped: Callable[[Any], Step],
        notes: tuple[str, ...],
        dtype: torch.dtype = torch.float32,
        neuron_of: Callable[[Any], torch.nn.Module] = lambda module: module,
    ) -> None:
        self.neuron_class: str = qualified_names([neuron_of(modules[layer.name]) for layer in file.metadata.layers])
        """The class, or classes, of the neurons that run."""
        self.notes = notes
        """What is steered round."""
        steps = {
            name: stepped(module) if isinstance(file.graph.nodes[name], nir.LIF | nir.IF) else stateless(module)
            for name, module in modules.items()
        }
        self._stepper = Stepper(file, steps, dtype)

    @property
    def description(self) -> str:
        """The package that computes, its dtype, and what is steered round."""
        dtype = str(self._stepper.dtype).removeprefix("torch.")
        return f"{self.title} {installed_version(self.name)}, {dtype}, CPU; {'; '.join(self.notes)}"

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """One batch, [N, ...] static or [N, T, ...] temporal; see `Stepper.run`."""
        return self._stepper.run(batch)
