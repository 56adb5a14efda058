"""The maps of the code are whole: each room names its modules, and the documentation real files."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "pipelines", "flowtrain", "evaluation")
ROOMS = sorted(path.parent for name in PACKAGES for path in (ROOT / name).rglob("__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_names_its_modules_and_rooms(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in room.glob("*/__init__.py")}
    missing = {name for name in modules | rooms if not re.search(rf"\b{name}\b", text)}
    assert not missing, f"{room.relative_to(ROOT)}/__init__.py does not say what these are"


def test_the_pages_name_files_that_are_there() -> None:
    places = [ROOT, *(ROOT / name for name in PACKAGES)]
    for page in ("architecture.md", "glossary.md"):
        for name in set(re.findall(r"[\w/]+/\w+\.py", (ROOT / "docs" / page).read_text())):
            assert any((place / name).is_file() for place in places), f"{page}: {name}"
