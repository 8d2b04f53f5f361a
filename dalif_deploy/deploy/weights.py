"""A checkpoint's weights into a module: where in the file they are, under which names, and whether they fit.

Training code saves a state_dict bare or in a dictionary of any form, beside an optimizer and counters, and with the
names of whatever held the module: `module.` (DataParallel), `_orig_mod.` (torch.compile), `model.` or `net.`
(Lightning). So no list of such names is needed: every dictionary of tensors in the file is looked at, whole and below
each prefix of its keys, and the one whose keys and shapes are exactly the module's is taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from dalif_deploy.errors import Code, DalifError

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a key that wrappers put there, at any depth."""
DEEPEST = 4
"""How far dictionaries within dictionaries are followed."""
SHOWN = 8
"""How many keys of a kind an error's line names."""
LISTED = " (--json lists all)"


@dataclass(frozen=True, eq=False)
class Place:
    """A dictionary of tensors in a file, seen below a prefix of its keys.

    `path`: the keys that lead to it; `prefix`: what stands before the keys, without the last dot.
    """

    path: tuple[str, ...]
    prefix: str
    whole: Mapping[str, Any]

    def __str__(self) -> str:
        return "/".join([*self.path, *([self.prefix] if self.prefix else [])])

    @cached_property
    def entries(self) -> dict[str, str]:
        """The file's key by the key below the prefix."""
        start = f"{self.prefix}." if self.prefix else ""
        return {key.removeprefix(start): key for key in self.whole if key.startswith(start)}

    @property
    def left_out(self) -> list[str]:
        """The keys of tensors that do not stand below the prefix."""
        taken = set(self.entries.values())
        return [key for key, value in self.whole.items() if key not in taken and isinstance(value, torch.Tensor)]


@dataclass(frozen=True, eq=False)
class Fit:
    """How the tensors at a place fit a module's.

    `keys`: the module's key -> the file's; `missing`: of the module; `unexpected`: of the file; `shapes`: by the
    module's key, the shapes found and expected; `optional`: counters that evaluation never reads, also missing.
    """

    place: Place
    keys: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[list[int], list[int]]]
    optional: list[str]

    @property
    def perfect(self) -> bool:
        return bool(self.keys) and not (self.missing or self.unexpected or self.shapes)

    @property
    def agreeing(self) -> int:
        return len(self.keys) - len(self.shapes)


def load_weights(module: torch.nn.Module, content: Any, path: Path, *, key: str | None = None) -> tuple[str, ...]:
    """Load the state_dict that `content`, what the file at `path` holds, has for `module`.

    `key`: which place to take, as an error names it, where several fit. Returns what was inferred, a line each.
    Raises `DalifError`: FOREIGN_FILE where there is no state_dict or none with the module's keys and shapes (all
    that differ are listed, in `details` without limit), or whose values the module's types cannot hold; AMBIGUOUS
    where several fit that are not equal; BAD_OPTION for a `key` that is not there.
    """
    own = module.state_dict()
    places = list(_places(content, ()))
    if not places:
        raise DalifError(Code.FOREIGN_FILE, f"{path}: holds no state_dict; save model.state_dict()")
    if key is not None:
        places = _named(places, key, path)
    fits = [_fit(own, place) for place in places]
    fitting = [fit for fit in fits if fit.perfect]
    if not fitting:
        raise _misfit(path, max(fits, key=lambda fit: fit.agreeing))
    chosen = fitting[0]
    others = [fit for fit in fitting[1:] if not _equal(fit, chosen)]
    if others:
        listed = ", ".join(f"'{fit.place}'" for fit in (chosen, *others))
        raise DalifError(
            Code.AMBIGUOUS,
            f"{path}: several state_dicts in it are this module's, and their values differ: {listed}; say which with "
            f"--state-key {chosen.place}",
        )
    _load(module, own, chosen, path)
    return tuple(_notes(chosen))


def modules_in(content: Any, depth: int = 0) -> list[torch.nn.Module]:
    """The modules that an unpickled object is or holds, outermost ones only."""
    if isinstance(content, torch.nn.Module):
        return [content]
    if not isinstance(content, Mapping) or depth == DEEPEST:
        return []
    return [module for value in content.values() for module in modules_in(value, depth + 1)]


def _places(content: Any, path: tuple[str, ...]) -> Iterator[Place]:
    if isinstance(content, torch.nn.Module):  # only what was unpickled holds any
        content = content.state_dict()
    if isinstance(content, list | tuple):
        content = {str(number): value for number, value in enumerate(content) if _holds_places(value)}
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    names = [key for key, value in content.items() if isinstance(value, torch.Tensor)]
    if names:
        prefixes = dict.fromkeys([""])
        for name in names:
            parts = name.split(".")
            prefixes.update(dict.fromkeys(".".join(parts[:depth]) for depth in range(1, len(parts))))
        # The shortest first: on a tie it leaves least out.
        for prefix in sorted(prefixes, key=lambda text: text.count(".") + bool(text)):
            yield Place(path, prefix, content)
    if len(path) < DEEPEST:
        for key, value in content.items():
            yield from _places(value, (*path, key))


def _holds_places(value: Any) -> bool:
    """Whether an entry of a list is worth a look; long lists are of numbers."""
    return isinstance(value, Mapping | list | tuple | torch.nn.Module)


def _named(places: list[Place], key: str, path: Path) -> list[Place]:
    named = [place for place in places if str(place) == key]
    if not named:
        there = [f"'{place}'" for place in places if not place.prefix and place.path]
        listed = ", ".join(there[:SHOWN]) if there else "none with a name"
        raise DalifError(
            Code.BAD_OPTION, f"--state-key {key}: {path} holds no tensors there; its state_dicts are {listed}"
        )
    return named


def _fit(own: Mapping[str, Any], place: Place) -> Fit:
    # A name is compared without what wrappers add, on both sides, unless that would make two names one.
    mine, theirs = _bare(own), _bare(place.entries)
    keys = {mine[bare]: place.entries[theirs[bare]] for bare in mine if bare in theirs}
    absent = [mine[bare] for bare in mine if bare not in theirs]
    optional = [key for key in absent if key.rpartition(".")[2] == "num_batches_tracked"]
    shapes = {}
    for name, found in keys.items():
        ours, value = own[name], place.whole[found]
        if not isinstance(ours, torch.Tensor) or is_lazy(ours):
            continue
        shape = list(value.shape) if isinstance(value, torch.Tensor) else None
        if shape != list(ours.shape):
            shapes[name] = (shape if shape is not None else [], list(ours.shape))
    return Fit(
        place, keys, [key for key in absent if key not in optional],
        [place.entries[theirs[bare]] for bare in theirs if bare not in mine], shapes, optional,
    )  # fmt: skip


def _bare(names: Mapping[str, Any]) -> dict[str, str]:
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    return bare if len(bare) == len(names) else {name: name for name in names}


def _equal(one: Fit, other: Fit) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return a is b

    return one.keys.keys() == other.keys.keys() and all(
        same(one.place.whole[one.keys[key]], other.place.whole[other.keys[key]]) for key in one.keys
    )


def _load(module: torch.nn.Module, own: Mapping[str, Any], fit: Fit, path: Path) -> None:
    state: OrderedDict[str, Any] = OrderedDict((name, fit.place.whole[key]) for name, key in fit.keys.items())
    changed = [name for name, value in state.items() if not _holds(own[name], value)]
    if changed:
        first = changed[0]
        raise DalifError(
            Code.FOREIGN_FILE,
            f"{path}: {_few(changed)}: the module's {own[first].dtype} cannot hold the {state[first].dtype} values of "
            "the file; build the module in that type (such as model.double()), or save the weights in the module's",
        )
    # What versions of modules wrote it; without it, they assume the oldest.
    metadata = getattr(fit.place.whole, "_metadata", None)
    if isinstance(metadata, Mapping):
        start = f"{fit.place.prefix}." if fit.place.prefix else ""
        kept = {name.removeprefix(start): value for name, value in metadata.items() if f"{name}.".startswith(start)}
        state._metadata = kept  # type: ignore[attr-defined]
    try:
        module.load_state_dict(state, strict=not fit.optional)
    except Exception as error:  # a module may load its state by code of its own
        raise DalifError(
            Code.FOREIGN_FILE, f"{path}: the module refuses its state_dict: {type(error).__name__}: {error}"
        ) from error


def _holds(ours: Any, value: Any) -> bool:
    """Whether a parameter of our type can take the values as they are."""
    if not (isinstance(ours, torch.Tensor) and isinstance(value, torch.Tensor)) or ours.dtype == value.dtype:
        return True
    taken = value.to(ours.dtype).to(value.dtype)
    return bool(((taken == value) | ((taken != taken) & (value != value))).all())


def _misfit(path: Path, fit: Fit) -> DalifError:
    parts = []
    if fit.missing:
        parts.append(f"missing {_few(fit.missing, LISTED)}")
    if fit.unexpected:
        parts.append(f"unexpected {_few(fit.unexpected, LISTED)}")
    if fit.shapes:
        parts.append(
            _few([f"{key} is {found}, should be {wanted}" for key, (found, wanted) in fit.shapes.items()], LISTED)
        )
    count = len(fit.missing) + len(fit.unexpected) + len(fit.shapes)
    where = f" at '{fit.place}'" if str(fit.place) else ""
    differ = "1 key differs" if count == 1 else f"{count} keys differ"
    return DalifError(
        Code.FOREIGN_FILE,
        f"{path}: its state_dict{where} is not this module's, {differ}: {'; '.join(parts)}",
        details={
            "missing": fit.missing,
            "unexpected": fit.unexpected,
            "wrong_shape": [
                {"key": key, "found": found, "expected": wanted} for key, (found, wanted) in fit.shapes.items()
            ],
        },
    )


def _few(names: list[str], where: str = "") -> str:
    more = f" and {len(names) - SHOWN} more{where}" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _notes(fit: Fit) -> Iterator[str]:
    if str(fit.place):
        yield f"weights: taken from '{fit.place}'"
    if fit.place.left_out and fit.place.prefix:
        yield f"weights: not of this module, left out: {_few(fit.place.left_out)}"
    if fit.optional:
        yield f"weights: not in the file, and never read in evaluation: {_few(fit.optional)}"
