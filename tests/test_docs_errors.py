"""docs/errors.md lists every error code, as the code has it, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from dalif_deploy.errors import Code

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"


def rows() -> list[tuple[str, str, int, str]]:
    """(identifier, name, exit status, meaning) of every row; the last column, the mend, is prose."""
    found = re.findall(r"^\| `(E\d{4})` \| `(\w+)` \| (\d) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert all(mend.strip() for *_, mend in found)
    return [(identifier, name, int(status), meaning) for identifier, name, status, meaning, _ in found]


def test_the_page_lists_every_code_in_order() -> None:
    assert rows() == [(code.identifier, code.name, code.exit_status, code.meaning) for code in Code]


def test_identifiers_are_unique_and_say_their_group() -> None:
    identifiers = [code.identifier for code in Code]
    assert len(set(identifiers)) == len(identifiers)
    assert identifiers == sorted(identifiers)
    status = {"E01": 2, "E02": 1, "E03": 3}
    assert all(status[code.identifier[:3]] == code.exit_status for code in Code)


def test_every_code_is_raised_somewhere() -> None:
    root = PAGE.parent.parent
    source = "".join(
        path.read_text()
        for folder in ("dalif_deploy", "exporters", "runtimes")
        for path in (root / folder).rglob("*.py")
        if path.name != "errors.py"
    )
    unused = [code.name for code in Code if f"Code.{code.name}" not in source]
    assert unused == []
