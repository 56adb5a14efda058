"""The maps of the code are whole: each room names its modules, each module has its tests, and the
documentation names real files.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "pipelines", "flowtrain", "evaluation")
# Modules of two packages have a module of tests in the same place.
MIRRORED = ("pipelines", "evaluation")
# But for pure declarations, which are tested where they are used.
DECLARATIONS = {
    # a named tuple, of which `in_batches` makes all that networks give
    "evaluation/extractors/outputs.py": "tests/evaluation/extractors/test_batches.py",
}
ROOMS = sorted(path.parent for name in PACKAGES for path in (ROOT / name).rglob("__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_names_its_modules_and_rooms(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in room.glob("*/__init__.py")}
    missing = {name for name in modules | rooms if not re.search(rf"\b{name}\b", text)}
    assert not missing, f"{room.relative_to(ROOT)}/__init__.py does not say what these are"


def test_a_module_has_a_module_of_tests_in_the_same_place() -> None:
    modules = [path for name in MIRRORED for path in (ROOT / name).rglob("*.py")]
    names = [path.relative_to(ROOT) for path in modules if path.name != "__init__.py"]
    assert len(names) > 100
    expected = {
        str(name): DECLARATIONS.get(str(name), f"tests/{name.parent}/test_{name.name}")
        for name in names
    }
    missing = [tests for tests in expected.values() if not (ROOT / tests).is_file()]
    assert missing == [], "not there"
    assert DECLARATIONS.keys() <= expected.keys(), "of modules that are gone"


def test_the_pages_name_files_that_are_there() -> None:
    places = [ROOT, *(ROOT / name for name in PACKAGES)]
    for page in ("architecture.md", "glossary.md"):
        for name in set(re.findall(r"[\w/]+/\w+\.py", (ROOT / "docs" / page).read_text())):
            assert any((place / name).is_file() for place in places), f"{page}: {name}"
