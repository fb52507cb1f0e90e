"""Images of a style: found in its package, matched with emoji, drawn at one size on white."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

from ppvilg.data.emoji.concepts import Emoji, normal_id
from ppvilg.data.emoji.icon_names import IconNames
from ppvilg.data.emoji.packages import read
from ppvilg.data.emoji.styles import Style

SIZE = 64

# Images that are wrong in their package: Sark's flag is Saudi Arabia's there.
_WRONG = {("noto", "1F1E8-1F1F6")}


def read_images(style: Style, tarball: Path, emoji: list[Emoji], names: IconNames) -> Iterator[tuple[str, bytes]]:
    """(code points, lossless WebP) for each emoji the style has, in their order: SIZE x SIZE, RGB on white."""
    content = read(tarball, style.location)
    if style.kind == "images":
        found = {normal_id(Path(path).stem): data for path, data in content.items()}
        for entry in emoji:
            if entry.codepoints in found and (style.id, entry.codepoints) not in _WRONG:
                yield entry.codepoints, _encode(_open(found[entry.codepoints]))
        return
    icons = json.loads(content[style.location])
    chosen = match_icons(style, icons, read(tarball, "chars.json"), names)
    for entry in emoji:
        if entry.codepoints in chosen:
            yield entry.codepoints, _encode(_draw(icons, chosen[entry.codepoints]))


def match_icons(style: Style, icons: dict, chars: dict[str, bytes], names: IconNames) -> dict[str, str]:
    """{code points: icon name} of an Iconify set."""
    declared = json.loads(chars.get("chars.json", b"{}"))
    chosen = {normal_id(codepoints): name for codepoints, name in declared.items()}
    if chosen:  # the package says itself what its icons mean
        return chosen
    aliases: dict[str, list[str]] = {}
    for alias, target in icons.get("aliases", {}).items():
        if set(target) == {"parent"}:
            aliases.setdefault(target["parent"], []).append(alias)
    for name in icons["icons"]:
        found = names.find(style.id, [name, *aliases.get(name, [])])
        if found:
            chosen.setdefault(found, name)
    return chosen


def _open(data: bytes):
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGBA")
    # Premultiplied, so that the colour of transparent pixels does not bleed into the edges.
    if image.size != (SIZE, SIZE):
        image = image.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.BOX)
    return image


def _draw(icons: dict, name: str):
    try:
        import resvg_py
    except ImportError:
        raise ValueError("resvg-py is not installed; run: pip install -r requirements-emoji.txt") from None
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    body = icon["body"]
    if alias.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIZE}" '
        f'height="{SIZE}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )
    return _open(bytes(resvg_py.svg_to_bytes(svg_string=svg)))


def _encode(image) -> bytes:
    from PIL import Image

    white = Image.new("RGBA", (SIZE, SIZE), "white")
    white.alpha_composite(image.convert("RGBA"))
    stream = io.BytesIO()
    # Method 6 takes 25 times longer for 1 %.
    white.convert("RGB").save(stream, "WEBP", lossless=True, quality=100, method=4)
    return stream.getvalue()
