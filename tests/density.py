"""Counts how dense the packages are, and fails where they are too dense: part of `make lint`.

Complexity is counted as radon counts it: 1, and 1 for each branch, loop, `except`, `else` of a loop
or of a `try`, assertion, comprehension and its conditions, boolean operator, ternary, and case of a
`match` but the last resort. A nested function is counted for itself. Lines of a function are
counted from its `def`: decorators, such as a command's options, are none of them.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("schemas", "pipelines", "flowtrain", "evaluation")

MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 7
MOST_COMPLEXITY = 12
MOST_COLUMNS = 100
MOST_LINES_OF_A_FILE = 400

# What each count is called when it is printed.
FUNCTION_LINES = f"functions above {MOST_LINES_OF_A_FUNCTION} lines"
PARAMETERS = f"functions above {MOST_PARAMETERS} parameters"
COMPLEXITY = f"functions above complexity {MOST_COMPLEXITY}"
TERNARIES = "nested ternaries"
COLUMNS = f"lines above {MOST_COLUMNS} columns"
FILE_LINES = f"files above {MOST_LINES_OF_A_FILE} lines"
HOMONYMS = "public class and type names that a package has twice"
COUNTS = (FUNCTION_LINES, PARAMETERS, COMPLEXITY, TERNARIES, COLUMNS, FILE_LINES, HOMONYMS)

# Over the limit, and allowed for now. An entry that is no longer over is an error: the table only
# gets shorter.
ALLOWED: dict[str, set[str]] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Findings = dict[str, dict[str, str]]  # count -> name of the place -> by how much


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Nodes of a function's body, without those of the functions defined in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting.extend(ast.iter_child_nodes(node))


def branches(node: ast.AST) -> int:
    """What one node adds to the complexity of the function that it is in."""
    match node:
        case ast.If() | ast.IfExp() | ast.Assert():
            return 1
        case ast.For() | ast.AsyncFor() | ast.While():
            return 1 + bool(node.orelse)
        case ast.Try() | ast.TryStar():
            return len(node.handlers) + bool(node.orelse)
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.Match():
            return sum(not _last_resort(case.pattern) for case in node.cases)
    return 0


def _last_resort(pattern: ast.pattern) -> bool:
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def complexity(function: Function) -> int:
    """Number of ways through a function, its boolean operators and comprehensions counted."""
    return 1 + sum(branches(node) for node in own_nodes(function))


def parameters(function: Function) -> int:
    """Number of a function's parameters, without `self`, `cls`, `*args` and `**kwargs`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def nested_ternaries(tree: ast.AST) -> int:
    """Number of ternaries with a ternary somewhere inside."""
    ternaries = (node for node in ast.walk(tree) if isinstance(node, ast.IfExp))
    return sum(
        any(isinstance(inner, ast.IfExp) for inner in ast.walk(outer) if inner is not outer)
        for outer in ternaries
    )


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, Function]]:
    """All functions with their dotted names in the module, methods and nested ones too."""
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{node.name}".lstrip(".")
            yield name, node
        elif isinstance(node, ast.ClassDef):
            name = f"{within}.{node.name}".lstrip(".")
        yield from functions(node, name)


def count_file(path: str, text: str) -> Findings:
    """Everything in one module that is over a limit, but homonyms, which are a package's."""
    found: Findings = defaultdict(dict)
    tree = ast.parse(text, path)
    for name, function in functions(tree):
        place = f"{path}:{name}"
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        counted = (
            (FUNCTION_LINES, length, MOST_LINES_OF_A_FUNCTION),
            (PARAMETERS, parameters(function), MOST_PARAMETERS),
            (COMPLEXITY, complexity(function), MOST_COMPLEXITY),
        )
        for count, value, most in counted:
            if value > most:
                found[count][place] = str(value)

    lines = text.splitlines()
    long_lines = sum(len(line) > MOST_COLUMNS for line in lines)
    if long_lines:
        found[COLUMNS][path] = str(long_lines)
    if len(lines) > MOST_LINES_OF_A_FILE:
        found[FILE_LINES][path] = str(len(lines))
    nested = nested_ternaries(tree)
    if nested:
        found[TERNARIES][path] = str(nested)
    return found


def public_classes(text: str) -> list[str]:
    """Names of a module's top-level classes and type aliases, but those with an underscore."""
    names = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in names if name[0].isupper() and not name.isupper()]


def homonyms(package: str, texts: dict[str, str]) -> dict[str, str]:
    """Class names that more than one module of a package defines, with those modules."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path, text in texts.items():
        for name in public_classes(text):
            homes[name].append(path)
    return {
        f"{package}:{name}": ", ".join(paths) for name, paths in homes.items() if len(paths) > 1
    }


def count(root: Path) -> Findings:
    """Everything that is over a limit in the packages below `root`."""
    found: Findings = {count: {} for count in COUNTS}
    for package in PACKAGES:
        texts = {
            path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted((root / package).rglob("*.py"))
        }
        for path, text in texts.items():
            for count, places in count_file(path, text).items():
                found[count].update(places)
        found[HOMONYMS].update(homonyms(package, texts))
    return found


def judge(found: Findings, allowed: dict[str, set[str]]) -> list[str]:
    """Lines about what is over and not allowed, and about what is allowed and no longer over."""
    faults = []
    for count, places in found.items():
        permitted = allowed.get(count, set())
        for place in sorted(places.keys() - permitted):
            faults.append(f"{place}: {count}: {places[place]}")
        for place in sorted(permitted - places.keys()):
            faults.append(f"{place}: {count}: no longer; take it out of tests/density.py")
    return faults


def main() -> int:
    """Prints the counts, then the faults; 1 where there are any."""
    found = count(Path(__file__).resolve().parents[1])
    for count_name, places in found.items():
        permitted = len(ALLOWED.get(count_name, ()))
        later = f" ({permitted} allowed for now)" if permitted else ""
        sys.stdout.write(f"{len(places):4} {count_name}{later}\n")
    faults = judge(found, ALLOWED)
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
