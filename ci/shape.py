"""Report files, functions and signatures that are too long; it never fails.

python ci/shape.py [FOLDER ...]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LINES_OF_A_FILE = 300
LINES_OF_A_FUNCTION = 60
PARAMETERS = 7


def findings(path: Path) -> Iterator[str]:
    """What is too long in a file, one line each."""
    text = path.read_text()
    if (lines := text.count("\n")) > LINES_OF_A_FILE:
        yield f"{path}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > LINES_OF_A_FUNCTION:
            yield f"{path}:{node.lineno}: {node.name} has {lines} lines"
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if (count := sum(a.arg not in ("self", "cls") for a in arguments)) > PARAMETERS:
            yield f"{path}:{node.lineno}: {node.name} has {count} parameters"


def main() -> None:
    for folder in sys.argv[1:] or ["platform", "storage", "jobs"]:
        for path in sorted(Path(folder).rglob("*.py")):
            for line in findings(path):
                print(line)


if __name__ == "__main__":
    main()
