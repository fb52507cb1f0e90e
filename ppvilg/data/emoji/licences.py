"""Who made the images, and under which licences: LICENSES.md and the licence texts beside the data."""

from importlib.resources import files
from pathlib import Path

from ppvilg.data.emoji.styles import NAMES, STYLES
from ppvilg.files import write_whole


def write_licences(output: Path) -> None:
    """Write `LICENSES.md` and copy the licence texts into `licenses/`."""
    lines = [
        "# Where the pictures and names come from",
        "",
        "The pictures of `data/emoji` were made by others, who allow everyone to use them under the licences below.",
        "They were changed: drawn or scaled to 64×64 pixels, put on white and stored as lossless WebP. The",
        "captions were composed by ppvilg from the names and search words of Emojibase and Unicode CLDR. Each sample's",
        "JSON names its source and licence.",
        "",
        "| what | package | licence | attribution |",
        "|---|---|---|---|",
    ]
    for style in STYLES:
        package = style.package
        lines.append(f"| pictures, style `{style.id}` | {package} | {_link(package.licence)} | {package.attribution} |")
    lines += [
        f"| names and tags | {NAMES} | {_link(NAMES.licence)}, {_link('Unicode-3.0')} | {NAMES.attribution} |",
        "",
        "The CC-BY-4.0 pictures are licensed under the Creative Commons Attribution 4.0 International Licence,",
        "<https://creativecommons.org/licenses/by/4.0/>, without any warranty of their makers. Keep this file with the",
        "data.",
        "",
    ]
    write_whole(output / "LICENSES.md", "\n".join(lines).encode())
    (output / "licenses").mkdir(exist_ok=True)
    for text in sorted(files("ppvilg.data.emoji").joinpath("licences").iterdir(), key=lambda text: text.name):
        write_whole(output / "licenses" / text.name, text.read_bytes())


def _link(licence: str) -> str:
    return f"[{licence}](licenses/{licence}.txt)"
