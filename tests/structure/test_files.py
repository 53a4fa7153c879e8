"""How files look and where they lie: sizes, docstrings, packages, words."""

from __future__ import annotations

import fnmatch
import tomllib
from pathlib import Path

import pytest
from tree_rules import (
    MAX_LINES,
    NO_PACKAGE,
    NOT_OURS,
    ROOT,
    Module,
    modules,
    shape_faults,
    text_faults,
    texts,
)

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_module_is_small_and_says_what_it_is(module: Module) -> None:
    assert list(shape_faults(module)) == []


@pytest.mark.parametrize(
    "module",
    [
        Module("engine.big", '"""Big.\n\nRuns in: workers.\n"""\n' + "x = 1\n" * MAX_LINES),
        Module("engine.silent", "x = 1\n"),
        Module("engine.silent", "", is_package=True),
        Module("engine.unplaced", '"""Somewhere."""\n'),
    ],
)
def test_refuses_the_shape(module: Module) -> None:
    assert len(list(shape_faults(module))) == 1


def test_accepts_the_shape() -> None:
    assert list(shape_faults(Module("engine.a", '"""A.\n\nRuns in: workers.\n"""\n'))) == []
    assert list(shape_faults(Module("engine.a", '"""A."""\n', is_package=True))) == []


# -- folders -------------------------------------------------------------------------------------


def folders(root: Path) -> list[Path]:
    """Folders of the package that hold modules, the root excepted."""
    found = {
        path.parent
        for top in ("engine", "workers", "configs")
        for path in (root / top).rglob("*.py")
    }
    return sorted(path for path in found if path.relative_to(root).as_posix() not in NO_PACKAGE)


def unpacked(root: Path, packages: list[str]) -> set[str]:
    """What is listed and absent, or there and not listed."""
    there = {"meles", *(".".join(("meles", *p.relative_to(root).parts)) for p in folders(root))}
    return there ^ set(packages)


def strays(root: Path) -> set[str]:
    return {path.name for path in root.glob("*.py")} - {"__init__.py", "supervisor.py"}


def test_every_folder_is_a_package() -> None:
    assert [str(path) for path in folders(ROOT) if not (path / "__init__.py").is_file()] == []


def test_every_package_is_listed_and_every_listed_one_exists() -> None:
    assert unpacked(ROOT, SETUPTOOLS["packages"]) == set()


@pytest.mark.parametrize("folder", [f for f in NO_PACKAGE if (ROOT / f).exists()])
def test_folders_that_are_no_packages_are_installed_as_data(folder: str) -> None:
    patterns = [
        f"{package.replace('.', '/').removeprefix('meles/')}/{pattern}"
        for package, found in SETUPTOOLS["package-data"].items()
        for pattern in found
    ]
    for path in (ROOT / folder).rglob("*.py"):
        relative = path.relative_to(ROOT).as_posix()
        assert any(fnmatch.fnmatch(relative, pattern) for pattern in patterns), relative


def test_the_root_holds_the_api_and_the_supervisor_only() -> None:
    assert strays(ROOT) == set()


def test_refuses_stray_folders_and_files(tmp_path: Path) -> None:
    for name in ("engine/fs/files.py", "setup.py", "supervisor.py", "workers/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert strays(tmp_path) == {"setup.py"}
    listed = ["meles", "meles.workers", "meles.gone"]
    assert unpacked(tmp_path, listed) == {"meles.engine.fs", "meles.gone"}
    assert [path.name for path in folders(tmp_path)] == ["fs", "workers"]


# -- words ---------------------------------------------------------------------------------------


def test_no_banned_words_and_no_paths_of_a_machine() -> None:
    found = [
        fault
        for path in texts()
        for fault in text_faults(
            str(path.relative_to(ROOT)),
            path.read_text(encoding="utf-8", errors="replace"),
            str(ROOT),
        )
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "# TO_DO later",
        "FIX_ME",
        "a XX_X b",
        "an ugly ha_ck",
        "Ha_cky",
        "see /ho_me/somebody/notes",
        "in /ro_ot/db",
        "/srv/check/out/engine",
    ],
)
def test_refuses_the_words(text: str) -> None:
    written = text.replace("_", "")  # split here, or this file would have them
    assert len(list(text_faults("x.py", f"\n{written}\n", "/srv/check/out"))) == 1


def test_accepts_the_words() -> None:
    text = "hacksaw, xxx, TODOS, /home, /var/lib/db, /rooted/x"
    assert list(text_faults("x.py", text, "/app")) == []


def test_texts_leave_out_what_is_not_ours(tmp_path: Path) -> None:
    for name in ("a.py", ".mypy_pkg/b.py", "x.egg-info/PKG.txt", "docs/c.md", "d.sst", "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in texts(tmp_path)}
    assert found == {"a.py", "docs/c.md", "Makefile"}


def test_the_mypy_symlink_is_ignored_by_git_and_by_ruff() -> None:
    assert ".mypy_pkg" in NOT_OURS
    assert ".mypy_pkg/" in (ROOT / ".gitignore").read_text().splitlines()
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert ".mypy_pkg" in ruff["extend-exclude"]
