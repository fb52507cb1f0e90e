"""Pictures as arrays: conversions, PNG files and labelled grids."""

import io
from functools import cache
from pathlib import Path

import numpy as np

from ppvilg.files import write_whole

_FONT = Path(__file__).parent / "assets" / "NotoSansCJKsc-subset.otf"
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def to_model(pictures: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1


def from_model(pictures: np.ndarray) -> np.ndarray:
    """float32 [B, 3, H, W], clipped to [-1, 1] -> uint8 [B, H, W, 3]."""
    scaled = np.clip((pictures + 1) * 127.5, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1))


def check_picture(picture: np.ndarray) -> None:
    """Raise `ValueError` if a picture is not uint8 [H, W, 3] with at least one pixel."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"a picture is {picture.dtype} {list(picture.shape)}: expected uint8 [H, W, 3]")


def save_png(picture: np.ndarray, path: Path, description: str | None = None) -> None:
    """Write uint8 RGB [H, W, 3] under a temporary name and rename it; with a description it is marked as drawn by a model."""
    from PIL import Image, PngImagePlugin

    check_picture(picture)
    about = PngImagePlugin.PngInfo()
    if description is not None:
        about.add_text("Software", _SOFTWARE)
        about.add_itxt("Description", description)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG", pnginfo=about)
    write_whole(path, encoded.getvalue())


_SOFTWARE = "ppvilg"


def forget_images(folder: Path, keep: list[Path]) -> None:
    """Remove the numbered PNGs in a folder that are marked as drawn by a model, but not those to keep."""
    from PIL import Image

    for path in sorted(set(folder.glob("[0-9][0-9][0-9][0-9]*.png")) - set(keep)):
        try:
            with Image.open(path) as image:
                drawn = image.info.get("Software") == _SOFTWARE
        except (OSError, ValueError, SyntaxError):
            continue
        if drawn:
            path.unlink()


def plain_grid(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Rows of equally large pictures uint8 [H, W, 3], at least one, on white -> one picture uint8."""
    if not rows or not all(rows):
        raise ValueError("there is no picture to show: give rows of at least one each")
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3)
    page = np.full(shape, 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            page[top : top + height, left : left + width] = picture
    return page


def labelled_grid(cells: list[tuple[list[np.ndarray], str]], columns: int, zoom: int = 2, characters: int = 14) -> np.ndarray:
    """Cells of pictures side by side with a label below, `columns` cells in a row -> one picture uint8.

    `zoom` enlarges every picture by whole pixels; labels are broken after about `characters` wide characters. Raises
    `ValueError` where there is no picture.
    """
    from PIL import Image, ImageDraw

    if columns < 1 or not cells or not all(pictures for pictures, _ in cells):
        raise ValueError("there is no picture to show: give a column and a cell or more, with a picture each")
    size = cells[0][0][0].shape[0] * zoom
    across = max(len(pictures) for pictures, _ in cells)
    lines = [_broken(label, characters) for _, label in cells]
    font_size, gap = 16, 10
    cell_width = max(across * (size + 4) - 4, characters * font_size)
    text_height = max(len(broken) for broken in lines) * (font_size + 4)
    cell_height = size + 6 + text_height
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * (cell_width + gap) + gap, rows * (cell_height + gap) + gap), _PAPER)
    draw = ImageDraw.Draw(page)
    for i, ((pictures, _), broken) in enumerate(zip(cells, lines, strict=True)):
        left, top = gap + i % columns * (cell_width + gap), gap + i // columns * (cell_height + gap)
        for j, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS)
            page.paste(enlarged, (left + j * (size + 4), top))
        for j, line in enumerate(broken):
            draw.text((left, top + size + 6 + j * (font_size + 4)), line, font=_font(font_size), fill=_INK)
    return np.asarray(page)


@cache
def _font(size: int):
    from PIL import ImageFont

    return ImageFont.truetype(str(_FONT), size)


def _broken(text: str, characters: int) -> list[str]:
    """Lines of at most 16 * characters pixels, broken at any character (Chinese) or at a space where there is one."""
    font, limit, lines = _font(16), 16 * characters, [""]
    for word in _pieces(text):
        if font.getlength(lines[-1] + word) > limit and lines[-1]:
            lines.append("")
            word = word.lstrip()
        lines[-1] += word
    return lines


def _pieces(text: str) -> list[str]:
    """The places where a line may break: before a space or around a character that is not Latin."""
    pieces = [""]
    for character in text:
        if character == " " or ord(character) > 0x2E80 or (pieces[-1] and ord(pieces[-1][-1]) > 0x2E80):
            pieces.append("")
        pieces[-1] += character
    return [piece for piece in pieces if piece]
