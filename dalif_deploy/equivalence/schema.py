"""The JSON Schema of a verdict, as package data, and its version."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

SCHEMA_VERSION = 1
"""Of the verdict's JSON. It grows when a key is taken away or changes its meaning, not when one is added."""


def verdict_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `Verdict.as_json()`, and of what `dalif-verify --json` prints."""
    text = files("dalif_deploy.equivalence").joinpath("verdict.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
