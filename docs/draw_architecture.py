"""Draws the rooms of the code and their imports: docs/images/architecture.png.

python docs/draw_architecture.py     (or: make architecture)

A room is a sub-package. The image follows from the code alone: which rooms there are, what their
docstrings say, and what they import. tests/test_architecture.py keeps the rules with the functions
of this file.
"""

import ast
from graphlib import TopologicalSorter
from io import BytesIO
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {
    "lomar_det": REPOSITORY / "lomar_det",
    "lomar_pretrain": REPOSITORY / "projects" / "lomar_pretrain",
}
TITLES = {
    "lomar_det": "the detectron2 plugin: backbone, training engine, detector",
    "lomar_pretrain": "pretraining and classification",
}
# Imports run towards the front of this list, never towards its end.
ORDER = [
    "lomar_det.layers",
    "lomar_det.config",
    "lomar_det.modeling",
    "lomar_det.data",
    "lomar_det.checkpoint",
    "lomar_det.engine",
    "lomar_det.detection",
    "lomar_det.export",
    "lomar_det.benchmarks",
    "lomar_pretrain.models",
    "lomar_pretrain.data",
    "lomar_pretrain.figures",
    "lomar_pretrain.runs",
    "lomar_pretrain.benchmarks",
]
FOUNDATION = "lomar_det.config"  # every room may import it, as well as loose modules

Graph = dict[str, set[str]]  # who imports whom


def find_modules() -> dict[str, Path]:
    """All modules of both packages by their dotted names; a package stands for its __init__."""
    modules = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def read_imports() -> Graph:
    """What every module imports of both packages, also inside functions."""
    modules = find_modules()
    return {name: _imports_of(name, path, modules) for name, path in modules.items()}


def _imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*(base if node.level else []), *([node.module] * bool(node.module))])
            for alias in node.names:  # a module, or something that ``start`` defines
                inner = f"{start}.{alias.name}"
                found.add(inner if inner in modules else start)
    return (found & set(modules)) - {name}


def room_of(module: str) -> str:
    """The sub-package of a module; a loose module is by itself."""
    return ".".join(module.split(".")[:2])


def read_rooms(imports: Graph) -> Graph:
    """What every room of `ORDER` imports of the others, loose modules left out."""
    rooms: Graph = {room: set() for room in ORDER}
    for module, targets in imports.items():
        if room_of(module) in rooms:
            rooms[room_of(module)] |= {room_of(target) for target in targets} & set(rooms)
    return {room: targets - {room} for room, targets in rooms.items()}


def find_shared(imports: Graph) -> list[str]:
    """The loose modules that every room may import, as they import no room themselves."""
    loose = [name for name, path in find_modules().items() if path.parent in PACKAGES.values()]
    return [name for name in loose if name not in PACKAGES and imports[name] <= set(loose)]


def find_floors(rooms: Graph) -> dict[str, int]:
    """Each room one floor above the highest room that it imports."""
    floors: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        floors[room] = max((floors[target] + 1 for target in rooms[room]), default=0)
    return floors


def without_detours(rooms: Graph) -> Graph:
    """The transitive reduction: an arrow that other arrows imply is left out."""
    reached: Graph = {}
    for room in TopologicalSorter(rooms).static_order():
        reached[room] = rooms[room].union(*(reached[target] for target in rooms[room]))
    return {
        room: {t for t in targets if not any(t in reached[other] for other in targets)}
        for room, targets in rooms.items()
    }


# The image, in inches. A tower is a package; a floor holds its rooms side by side.
IMAGE = REPOSITORY / "docs" / "images" / "architecture.png"
DARK = {"lomar_det": "#24527a", "lomar_pretrain": "#8a4f0f"}
LIGHT = {"lomar_det": "#e8f0f8", "lomar_pretrain": "#fbf1e3"}
LEFT = {"lomar_det": 0.3, "lomar_pretrain": 6.4}
WIDTH, GAP = 5.0, 0.2  # of a tower, between its rooms
BOTTOM, FLOOR, HEIGHT = 0.95, 1.12, 0.79  # of the lowest room, of a floor, of a room
LANES = 0.65  # right of a tower's rooms, for arrows that run past them
LEGEND = (
    "An arrow points from a room to one that it imports; all arrows point down. Where a chain of "
    "arrows leads there as well, the arrow is left out. Every room may import config and "
)
Box = tuple[float, float, float]  # left, bottom, width


def draw(path: Path) -> None:
    """Draws all rooms and the arrows between them."""
    imports = read_imports()
    rooms = {room: targets - {FOUNDATION} for room, targets in read_rooms(imports).items()}
    del rooms[FOUNDATION]
    floors = find_floors(rooms)
    top = BOTTOM + FLOOR * (max(floors.values()) + 1) + 0.3
    figure = Figure(figsize=(LEFT["lomar_pretrain"] + WIDTH + LANES + 0.3, top))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, figure.get_figwidth()), ylim=(0, top))
    axes.axis("off")
    boxes = {FOUNDATION: (LEFT["lomar_det"], 0.2, WIDTH + LANES - 0.1)}
    for package, left in LEFT.items():
        for floor in set(floors.values()):
            here = [room for room in rooms if floors[room] == floor and room.startswith(package)]
            width = (WIDTH + GAP) / max(len(here), 1) - GAP
            for i, room in enumerate(here):
                boxes[room] = left + i * (width + GAP), BOTTOM + floor * FLOOR, width
        _draw_tower(axes, package, min(boxes[r][1] for r in boxes if r.startswith(package)), top)
    for room, box in boxes.items():
        _draw_room(axes, room, box, HEIGHT if room != FOUNDATION else 0.56)
    _draw_arrows(axes, without_detours(rooms), boxes)
    legend = LEGEND + ", ".join(f"{name.rpartition('.')[2]}.py" for name in find_shared(imports))
    axes.text(LEFT["lomar_pretrain"], 0.2, fill(legend + ".", 66), size=9, color="#444")
    buffer = BytesIO()
    figure.savefig(buffer, dpi=150)
    colors = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    colors.save(path, optimize=True)


def _draw_tower(axes: Axes, package: str, bottom: float, top: float) -> None:
    corner, color = (LEFT[package] - 0.2, bottom - 0.12), DARK[package]
    size = WIDTH + LANES + 0.3, top - bottom + 0.04
    style = dict(boxstyle="round,pad=0,rounding_size=0.15", fc=LIGHT[package], ec="none")
    axes.add_patch(FancyBboxPatch(corner, *size, **style, zorder=0))
    title = axes.text(LEFT[package], top - 0.38, package, size=15, weight="bold", color=color)
    style = dict(xycoords=title, textcoords="offset points", size=10, color=color)
    axes.annotate(TITLES[package], (1, 0), (9, 3), **style)


def _draw_room(axes: Axes, room: str, box: Box, height: float) -> None:
    """A box with the room's name and the first sentence of its docstring."""
    init, color = find_modules()[room], DARK[room.partition(".")[0]]
    docstring = ast.get_docstring(ast.parse(init.read_text())) or ""
    sentence = " ".join(docstring.split()).partition(". ")[0].rstrip(".").replace("`", "")
    left, bottom, width = box
    x, y = left + 0.12, bottom + height - 0.08
    style = dict(boxstyle="round,pad=0,rounding_size=0.08", fc="white", ec=color, lw=1.3, zorder=3)
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, **style))
    style = dict(va="top", zorder=4)
    axes.text(x, y, room.rpartition(".")[2], size=12, weight="bold", color=color, **style)
    axes.text(x, y - 0.23, fill(sentence, int(width * 14.5)), size=8.5, **style)


def _draw_arrows(axes: Axes, arrows: Graph, boxes: dict[str, Box]) -> None:
    """From the lower side of a room to the upper side of another, never across a third."""
    pairs = [(room, target) for room in arrows for target in sorted(arrows[room])]
    middle = {room: left + width / 2 for room, (left, _, width) in boxes.items()}
    long = [p for p in pairs if boxes[p[0]][1] - boxes[p[1]][1] > 1.5 * FLOOR]
    lanes: dict[tuple[str, str], float] = {}
    for pair in sorted(long, key=lambda p: boxes[p[0]][1] - boxes[p[1]][1]):
        package = pair[1].partition(".")[0]
        count = sum(other[1].startswith(package) for other in lanes)
        lanes[pair] = LEFT[package] + WIDTH + 0.17 * (count + 1)

    def port(pair: tuple[str, str], end: int) -> float:
        """The arrows of a room stand side by side, in the order of the places they lead to."""
        room = pair[end]
        here = [p for p in pairs if p[end] == room]
        here.sort(key=lambda p: lanes.get(p, middle[p[1 - end]]))
        return boxes[room][0] + boxes[room][2] * (here.index(pair) + 1) / (len(here) + 1)

    space = FLOOR - HEIGHT  # between a floor and the next
    for pair in pairs:
        x, y = port(pair, 0), boxes[pair[0]][1]
        to_x, to_y = port(pair, 1), boxes[pair[1]][1] + HEIGHT
        points, codes = [(x, y)], [Curve.MOVETO]
        if pair in lanes:
            lane = lanes[pair]
            points += [(x, y - 0.7 * space), (lane, y - 0.3 * space), (lane, y - space)]
            points += [(lane, to_y + space)]
            codes += [Curve.CURVE4] * 3 + [Curve.LINETO]
            x, y = points[-1]
        points += [(x, y - 0.6 * space), (to_x, to_y + 0.6 * space), (to_x, to_y)]
        codes += [Curve.CURVE4] * 3
        color = DARK[pair[0].partition(".")[0]]
        style = dict(arrowstyle="-|>,head_length=5,head_width=2.5", lw=1.2, color=color, alpha=0.7)
        axes.add_patch(FancyArrowPatch(path=Curve(points, codes), **style, zorder=2))


if __name__ == "__main__":
    draw(IMAGE)
    print(IMAGE.relative_to(REPOSITORY))
