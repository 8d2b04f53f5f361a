"""The project installs as it should: every module of an installed copy imports, outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"dalif_deploy": ROOT / "dalif_deploy", "dalif_deploy.exporters": ROOT / "exporters",
           "dalif_deploy.runtimes": ROOT / "runtimes"}  # fmt: skip


def packages() -> set[str]:
    """Every folder with Python files, under the name it installs as."""
    found = set()
    for name, folder in SOURCES.items():
        for init in folder.rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(folder).parts)))
    return found


def modules() -> list[str]:
    found = []
    for name, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append(".".join((name, *(part for part in parts if part != "__init__"))))
    return found


def test_the_listed_packages_are_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages()


def test_no_folder_of_code_lacks_its_init() -> None:
    for folder in SOURCES.values():
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain, not editable, install from a wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", folder, source],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_every_module_of_an_installed_copy_imports(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(installed)!r})\n"
        f"for name in {modules()!r}:\n"
        f"    assert importlib.import_module(name).__file__.startswith({str(installed)!r}), name\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_checkout_that_hides_the_installed_copy_says_so(tmp_path: Path) -> None:
    (tmp_path / "dalif_deploy").symlink_to(ROOT / "dalif_deploy")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path[:] = sys.meta_path[-3:]; import dalif_deploy"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ImportError" in done.stderr
    assert "pip install -e ." in done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, dalif_deploy; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
