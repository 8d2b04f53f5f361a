"""Modules that are not a model.pt: built by the user's own code, with weights from a checkpoint."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dalif_deploy.deploy.weights import modules_in
from dalif_deploy.errors import Code, DalifError


def build_module(factory: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """The module that `factory`, "package.module:function_or_class", returns for the keyword arguments.

    The current folder is importable. Raises `DalifError` (BAD_OPTION).
    """
    module_name, separator, attribute = factory.partition(":")
    if not separator or not module_name or not attribute:
        raise DalifError(Code.BAD_OPTION, f"--model {factory}: write it as package.module:factory")
    make = _attribute(module_name, attribute, factory)
    try:
        module = make(**arguments)
    except Exception as error:  # the user's code may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise DalifError(
            Code.BAD_OPTION, f"--model {factory}: called with {given}, it raises {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise DalifError(
            Code.BAD_OPTION, f"--model {factory}: returned {type(module).__name__}, a torch.nn.Module is needed"
        )
    return module


def run_adapter(path: Path) -> None:
    """Run the user's FILE.py, which registers neuron readers; its own folder is importable.

    Raises `DalifError` (FILE_MISSING, BAD_OPTION).
    """
    if not path.is_file():
        raise DalifError(Code.FILE_MISSING, f"{path}: no such adapter file; check --adapter")
    spec = importlib.util.spec_from_file_location("dalif_adapter", path)
    if spec is None or spec.loader is None:
        raise DalifError(Code.BAD_OPTION, f"{path}: an adapter is a Python file, named something.py")
    _importable(path.resolve().parent)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except DalifError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise DalifError(Code.BAD_OPTION, f"{path}: the adapter raises {type(error).__name__}: {error}") from error


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises `DalifError`: MISSING_PACKAGE, FILE_DAMAGED.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise DalifError(
            Code.MISSING_PACKAGE, f"{path}: reading safetensors needs a package; install it: pip install safetensors"
        ) from error
    try:
        tensors: dict[str, torch.Tensor] = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: the file is truncated or damaged ({error}); save or copy it again"
        ) from error
    return tensors


def only_module(content: Any, path: Path) -> torch.nn.Module:
    """The one module that an unpickled object is or holds. Raises `DalifError` (FOREIGN_FILE, AMBIGUOUS)."""
    found = modules_in(content)
    if len(found) == 1:
        return found[0]
    if found:
        raise DalifError(
            Code.AMBIGUOUS, f"{path}: holds {len(found)} modules; name the code that builds the one that is meant with "
            "--model package.module:factory"
        )  # fmt: skip
    raise DalifError(
        Code.FOREIGN_FILE,
        f"{path}: holds a {type(content).__name__}, a torch.nn.Module is needed; name the code that builds it with "
        "--model package.module:factory",
    )


def unpickle(path: Path) -> Any:
    """The Python object in `path`, running whatever code it holds. Raises `DalifError` (FILE_DAMAGED)."""
    _importable(Path.cwd())
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs foreign code, which may raise anything
        raise DalifError(Code.FILE_DAMAGED, f"{path}: unpickling it raises {type(error).__name__}: {error}") from error


def _is_state(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _attribute(module_name: str, attribute: str, factory: str) -> Callable[..., Any]:
    _importable(Path.cwd())
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's code
        raise DalifError(Code.BAD_OPTION, f"--model {factory}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise DalifError(Code.BAD_OPTION, f"--model {factory}: is not callable; name a function or class")
    return found


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
