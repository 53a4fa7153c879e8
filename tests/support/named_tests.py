"""Finding a test by name, for tables that say which test shows what."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]


@cache
def _parsed(path: Path) -> tuple[str, dict[str, ast.stmt]]:
    text = path.read_text()
    named: dict[str, ast.stmt] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named.update((target.id, node) for target in targets if isinstance(target, ast.Name))
    return text, named


def source_of(where: str) -> str:
    """The source of `folder/file: test`, with the helpers and tables of its file that it names.

    A file without a folder lies in `tests/api`; the `test_` of its name is left out.
    """
    place, _, name = where.partition(": ")
    folder, _, file = place.rpartition("/")
    path = TESTS / (folder or "api") / f"test_{file}.py"
    text, named = _parsed(path)
    if not name.startswith("test_") or name not in named:
        raise LookupError(f"there is no test {name} in {path}")
    nodes, left = [], [name]
    seen = set(left)
    while left:
        node = named[left.pop()]
        nodes.append(node)
        used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        used |= {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}  # fixtures
        more = (used & named.keys()) - seen
        seen |= more
        left += more
    return "\n".join(ast.get_source_segment(text, node) or "" for node in nodes)
