"""The public verbs: save, load, capture, export, verify, run. The one place that composes all the others."""

from dalif_deploy.certificate import check_certificate
from dalif_deploy.deploy.checking import CheckResult, check
from dalif_deploy.deploy.data import Data, read_data
from dalif_deploy.deploy.event_files import read_events
from dalif_deploy.deploy.exporting import DivergentError, ExportResult, export
from dalif_deploy.deploy.inspected import InspectedLayer, Inspection
from dalif_deploy.deploy.inspecting import inspect
from dalif_deploy.deploy.model import LoadOptions, Model, open_model
from dalif_deploy.deploy.probing import probe
from dalif_deploy.deploy.rejudging import judge_again
from dalif_deploy.deploy.results import decide_again
from dalif_deploy.deploy.running import run
from dalif_deploy.deploy.saving import capture, load, save
from dalif_deploy.deploy.verifying import verify

__all__ = [
    "CheckResult",
    "Data",
    "DivergentError",
    "ExportResult",
    "InspectedLayer",
    "Inspection",
    "LoadOptions",
    "Model",
    "capture",
    "check",
    "check_certificate",
    "decide_again",
    "export",
    "inspect",
    "judge_again",
    "load",
    "open_model",
    "probe",
    "read_data",
    "read_events",
    "run",
    "save",
    "verify",
]
