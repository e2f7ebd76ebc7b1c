"""Draw the rooms of the package as docs/images/rooms.svg, from the import contracts in pyproject.toml and the rooms' own first sentences.

``python tools/draw_rooms.py --write`` writes it; without an option it says whether the picture is the one of today.
"""

import ast
import sys
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
WIDTH, MARGIN, GAP, LINE = 1120, 20, 12, 15
STYLE = """
  text { font-family: system-ui, sans-serif; font-size: 12px; fill: #1f2328 }
  .name { font-weight: 600; font-size: 14px }
  .modules { fill: #59636e; font-size: 11px }
  rect { fill: #f6f8fa; stroke: #59636e; rx: 6 }
  .floor { fill: #fff; stroke: none; rx: 0 }
"""


def layers_of(container: str) -> list[list[str]]:
    """List the floors of a package from the top, each with its rooms side by side."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == [container])
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def describe(room: str) -> tuple[str, str]:
    """Read a room's first sentence, and the names of its modules and inner rooms; a module has none."""
    package = ROOT / "recsys_batch" / room
    source = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    text = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")
    if not package.is_dir():
        return text, ""
    inner = sorted(path.name + "/" for path in package.iterdir() if (path / "__init__.py").exists())
    modules = sorted(path.stem for path in package.glob("*.py") if path.name != "__init__.py" and not path.stem.endswith("_pb2"))
    return text, "  ".join([*inner, *modules])


def draw() -> str:
    """Draw every floor below the one that may import it."""
    boxes, top = [], MARGIN
    for floor in layers_of("recsys_batch"):
        width = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) / len(floor)
        characters = int((width - 20) / 6.6)
        texts = []
        for room in floor:
            sentence, modules = describe(room)
            rows = [("", line) for line in textwrap.wrap(sentence, characters)]
            rows += [("modules", line) for line in textwrap.wrap(modules, int(characters * 1.08), break_on_hyphens=False)]
            texts.append((room, rows))
        height = 34 + LINE * max(len(rows) for _, rows in texts)
        for number, (room, rows) in enumerate(texts):
            left = MARGIN + number * (width + GAP)
            boxes.append(f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{height}"/>')
            boxes.append(f'<text class="name" x="{left + 10:.1f}" y="{top + 20}">{escape(room)}</text>')
            for row, (kind, line) in enumerate(rows):
                boxes.append(f'<text class="{kind}" x="{left + 10:.1f}" y="{top + 38 + LINE * row}">{escape(line)}</text>')
        top += height + GAP
    boxes.insert(0, '<rect class="floor" width="100%" height="100%"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + MARGIN - GAP}" role="img" aria-label="The rooms">'
    return "\n".join([head, f"<style>{STYLE}</style>", *boxes, "</svg>", ""])


if __name__ == "__main__":
    picture = draw()
    if "--write" in sys.argv[1:]:
        PICTURE.write_text(picture)
    elif not PICTURE.exists() or PICTURE.read_text() != picture:
        sys.exit("docs/images/rooms.svg is not the picture of today's rooms: python tools/draw_rooms.py --write")
