"""Deploy trained DA-LIF spiking networks: the exported file, and the proof that it fires the same spikes.

Names are imported when they are first used, so that importing the package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if find_spec("dalif_deploy.exporters") is None or find_spec("dalif_deploy.runtimes") is None:
    raise ImportError(
        "dalif_deploy was found as a folder of its source checkout, without the parts that are installed beside it; "
        "leave this folder, or install the checkout with: pip install -e ."
    )

if TYPE_CHECKING:
    from dalif_deploy.capturing.neurons import NeuronParameters, register_neuron
    from dalif_deploy.deploy import (
        Data,
        ExportResult,
        Inspection,
        LoadOptions,
        capture,
        export,
        inspect,
        load,
        read_data,
        read_events,
        run,
        save,
        verify,
    )
    from dalif_deploy.encoding import Encoding
    from dalif_deploy.equivalence import Verdict
    from dalif_deploy.errors import Code, DalifError
    from dalif_deploy.event_data import read_event_data, to_event_data
    from dalif_deploy.exporters.nir import to_nir
    from dalif_deploy.exporters.onnx import to_onnx
    from dalif_deploy.graph import SpikingGraph
    from dalif_deploy.neuron import DALIF, reset
    from dalif_deploy.passes import fold
    from dalif_deploy.recording import Recording
    from dalif_deploy.recordings import Binning, Recordings, read_recordings

_HOME = {
    "Binning": "recordings",
    "Code": "errors",
    "DALIF": "neuron",
    "DalifError": "errors",
    "Data": "deploy",
    "Encoding": "encoding",
    "ExportResult": "deploy",
    "Inspection": "deploy",
    "LoadOptions": "deploy",
    "NeuronParameters": "capturing.neurons",
    "Recording": "recording",
    "Recordings": "recordings",
    "SpikingGraph": "graph",
    "Verdict": "equivalence",
    "capture": "deploy",
    "export": "deploy",
    "fold": "passes",
    "inspect": "deploy",
    "load": "deploy",
    "read_data": "deploy",
    "read_event_data": "event_data",
    "read_events": "deploy",
    "read_recordings": "recordings",
    "register_neuron": "capturing.neurons",
    "reset": "neuron",
    "run": "deploy",
    "save": "deploy",
    "to_event_data": "event_data",
    "to_nir": "exporters.nir",
    "to_onnx": "exporters.onnx",
    "verify": "deploy",
}

__all__ = [
    "Binning",
    "DALIF",
    "Code",
    "DalifError",
    "Data",
    "Encoding",
    "ExportResult",
    "Inspection",
    "LoadOptions",
    "NeuronParameters",
    "Recording",
    "Recordings",
    "SpikingGraph",
    "Verdict",
    "__version__",
    "capture",
    "export",
    "fold",
    "inspect",
    "load",
    "read_data",
    "read_event_data",
    "read_events",
    "read_recordings",
    "register_neuron",
    "reset",
    "run",
    "save",
    "to_event_data",
    "to_nir",
    "to_onnx",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dalif_deploy' has no attribute {name!r}")
    return getattr(import_module(f"dalif_deploy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
