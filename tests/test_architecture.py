"""The structure of the code: imports run down, names differ, the docs name what is there."""

import re
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import draw_architecture as architecture  # noqa: E402
from draw_architecture import FOUNDATION, ORDER, PACKAGES, find_shared, room_of  # noqa: E402

# A name that two files may have, and why.
SAME_NAME = {
    "__init__.py": "packages",
    "show_data.py": "shows what a run is fed: a detector's, or pretraining's",
    "from_checkpoint.py": "builds what a checkpoint holds: a detector, or a pretraining model",
    "settings.py": "what settings are (config), and the settings of one stage (detection, runs)",
}
MOST_FILES = 12  # beside __init__.py
MOST_LOOSE = {"lomar_det": 5, "lomar_pretrain": 3}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
PAGES += [*ROOT.glob("configs/*/README.md"), *ROOT.glob("projects/*/README.md")]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return architecture.read_imports()


def find_upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports that run from a room of `ORDER` to a later one, or to a loose module beside them."""
    allowed = {FOUNDATION, *find_shared(imports), *PACKAGES}
    place = {room: number for number, room in enumerate(ORDER)}
    return [
        f"{module} imports {target}"
        for module, targets in imports.items()
        if room_of(module) in place
        for target in sorted(targets)
        if room_of(target) not in allowed
        and place.get(room_of(target), len(ORDER)) > place[room_of(module)]
    ]


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_has_its_place_in_the_order():
    modules = architecture.find_modules()
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    assert {name for name in packages if name.count(".") == 1} == set(ORDER)


def test_no_import_runs_up(imports):
    assert not find_upward(imports)


def test_no_circle_of_imports(imports):
    assert not find_circle(imports)


def test_lomar_det_stands_without_lomar_pretrain(imports):
    wrong = [
        (module, target)
        for module, targets in imports.items()
        for target in targets
        if module.startswith("lomar_det") and target.startswith("lomar_pretrain")
    ]
    assert not wrong


def test_imports_are_found_wherever_they_stand(tmp_path, monkeypatch):
    """The checks above rely on it: relative, absolute, of modules and names, inside functions."""
    files = {
        "__init__.py": "",
        "low/__init__.py": "from . import one",
        "low/one.py": "def late():\n    from ..high.three import something",
        "low/two.py": "import lomar_det.low.one",
        "high/__init__.py": "",
        "high/three.py": "from ..low import two, name\nfrom lomar_det.low import one",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(architecture, "PACKAGES", {"lomar_det": tmp_path})
    found = {name: targets for name, targets in architecture.read_imports().items() if targets}
    low, high = "lomar_det.low", "lomar_det.high"
    assert found == {
        low: {f"{low}.one"},
        f"{low}.one": {f"{high}.three"},
        f"{low}.two": {f"{low}.one"},
        f"{high}.three": {low, f"{low}.one", f"{low}.two"},
    }
    assert find_circle(found)


@pytest.mark.parametrize(
    "module, target",
    [
        ("lomar_det.modeling.norm", "lomar_det.detection.train"),
        ("lomar_det.data.coco", "lomar_pretrain.models.lomar"),
        ("lomar_det.config.lazy", "lomar_det.engine.trainer"),
        ("lomar_det.engine.trainer", "lomar_det.inference"),
    ],
)
def test_an_import_that_runs_up_is_noticed(imports, module, target):
    assert find_upward(imports | {module: {target}})


def test_no_folder_is_a_drawer():
    count = defaultdict(int)
    for path in architecture.find_modules().values():
        count[path.parent] += path.name != "__init__.py"
    full = {str(folder): n for folder, n in count.items() if n > MOST_FILES}
    assert not full
    for package, most in MOST_LOOSE.items():
        assert count[PACKAGES[package]] <= most, package


def test_a_name_means_one_thing():
    places = defaultdict(list)
    for name, path in architecture.find_modules().items():
        places[path.name].append(name)
    twice = {name for name, modules in places.items() if len(modules) > 1}
    assert {name: places[name] for name in twice - set(SAME_NAME)} == {}


def test_image_shows_todays_rooms(tmp_path):
    image = tmp_path / "architecture.png"
    architecture.draw(image)
    assert 10_000 < image.stat().st_size < 200_000


def test_architecture_page_names_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([^`\s]+)`", text)
    paths = {name for name in named if "/" in name or name.endswith((".py", ".md"))}
    assert len(paths) > 50
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands_of_the_docs_lead_somewhere(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    files = re.findall(r"(?:configs|docs|lomar_det|projects|tests|tools)/[\w./-]+\.\w+", text)
    missing += [name for name in files if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_the_docs_name_exist(page):
    known = (ROOT / "docs" / "settings.md").read_text()
    pattern = r"(?<![\w./])(?:train|data)\.(?!json)\w+(?:\.\w+)*(?==|`)"
    named = set(re.findall(pattern, page.read_text()))
    assert [name for name in sorted(named) if f"`{name}`" not in known] == []
