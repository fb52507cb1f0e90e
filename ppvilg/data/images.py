"""Encoded images to arrays."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_000_000
"""Larger images are refused before they are decoded (Pillow warns from a little above)."""


class UnusableImageError(ValueError):
    """Data that is no image, or one that cannot be decoded."""

    def __init__(self, reason: str, detail: str = ""):
        """`reason`: one of few, so that images can be counted by it; `detail` is of this image alone."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with these (16 or more) bytes is a JPEG, PNG, WebP, GIF or BMP."""
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def load_image(image: "Image | np.ndarray | bytes | str | Path", size: int) -> np.ndarray:
    """As `decode_image`, of a PIL image, an array uint8 [H, W, 3], an image file's bytes or its path.

    Raises `ValueError` for anything else and `OSError` for a file that cannot be read.
    """
    from PIL import Image, ImageOps

    if isinstance(image, str | Path):
        try:
            return decode_image(Path(image).read_bytes(), size)
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"the image is an array {image.dtype} {list(image.shape)}: expected uint8 [H, W, 3]")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        if not all(image.size):
            raise ValueError(f"the image has {image.width}x{image.height} pixels: there is nothing in it")
        image = ImageOps.exif_transpose(image)
        file = io.BytesIO()
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG", compress_level=0)
        image = file.getvalue()
    if not isinstance(image, bytes):
        raise ValueError(f"the image is a {type(image).__name__}: expected a PIL image, an array, a path or a file's bytes")
    return decode_image(image, size)


def decode_image(data: bytes, size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file: uint8 [size, size, 3], RGB.

    Alpha is composited on white, grey, palette, CMYK and 16-bit images become RGB, cameras' orientation is applied.
    The square in the middle is cut out and scaled (by area to shrink, bicubic to enlarge). Raises `UnusableImageError` if the
    data is not an image, is truncated, or has more than `max_pixels`.
    """
    return decode_squares(data, [size], max_pixels)[0][size]


def decode_squares(
    data: bytes, sides: Sequence[int], max_pixels: int = MAX_PIXELS
) -> tuple[dict[int, np.ndarray], tuple[int, int]]:
    """Decode an image file once for squares of several sides: {side: what `decode_image` returns}, and the (width, height) of
    the whole image, upright. Raises as `decode_image`."""
    import cv2

    # JPEGs could be decoded at a half or a quarter of their size, in half of the time where they are large. But unless their
    # sides are multiples of it the square lies a little beside (27 to 39 dB from this one, on photographs).
    has_alpha, orientation = _read_header(data, max_pixels)
    # OpenCV turns pictures of some kinds and not those of others.
    flags = cv2.IMREAD_UNCHANGED if has_alpha else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UnusableImageError("an image that cannot be decoded", "damaged, or a kind that OpenCV doesn't read")
    image = _upright(image, orientation)
    height, width = image.shape[:2]
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    square = _on_white(image[top : top + shorter, left : left + shorter])
    squares = {}
    for side in sides:
        scaled = square
        if side != shorter:
            how = cv2.INTER_AREA if shorter > side else cv2.INTER_CUBIC
            scaled = cv2.resize(square, (side, side), interpolation=how)
        squares[side] = cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB)
    return squares, (width, height)


def encode_jpeg(image: np.ndarray) -> bytes:
    """An image uint8 [H, W, 3], RGB, as JPEG."""
    import cv2

    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _read_header(data: bytes, max_pixels: int) -> tuple[bool, int]:
    """Whether the image has alpha, and its orientation in EXIF; raises `UnusableImageError` if it can't be decoded safely."""
    from PIL import Image

    if not looks_like_image(data):
        raise UnusableImageError("not an image", "expected a JPEG, PNG, WebP, GIF or BMP file")
    if _is_truncated(data):
        raise UnusableImageError("the image is truncated")
    try:
        header = Image.open(io.BytesIO(data))  # reads only the header
    except Image.DecompressionBombError as error:
        raise UnusableImageError("the image is too large", str(error)) from None
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UnusableImageError("an image that cannot be decoded", str(error)) from None
    width, height = header.size
    if width * height > max_pixels:
        raise UnusableImageError("the image is too large", f"{width}x{height} pixels are more than the limit of {max_pixels}")
    has_alpha = header.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in header.info
    return has_alpha, _orientation(header, data)


def _orientation(header: "Image", data: bytes) -> int:
    """1 to 8 as EXIF numbers them, 1 where there is none or a damaged one."""
    # To look for it in a PNG that has none Pillow would decode the whole picture.
    if header.format == "PNG" and not any(chunk in data for chunk in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")):
        return 1
    try:
        value = header.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever Pillow raises for damaged metadata
        return 1
    return value if value in _TURNS else 1


_ORIENTATION = 0x0112
_TURNS = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False)}
"""Of each orientation: by how many quarters to turn the picture to the left, and whether to mirror it left to right first."""


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    quarters, mirrored = _TURNS[orientation]
    return np.rot90(image[:, ::-1] if mirrored else image, quarters)


def _is_truncated(data: bytes) -> bool:
    """Whether the end is missing; OpenCV would fill in grey for the rest of a JPEG without a word."""
    if data.startswith(b"\xff\xd8"):
        # A thumbnail inside has an end marker too, but no second image starts after the main one's data.
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-4096:]
    if data.startswith(b"RIFF"):
        return len(data) < 12 or int.from_bytes(data[4:8], "little") + 8 > len(data) + 1
    return False


def _on_white(image: Any) -> np.ndarray:
    """Any decoded image as uint8 [height, width, 3], alpha composited on white."""
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise UnusableImageError("an image of an unusual kind", f"{image.dtype} numbers; convert them to 8 bits per channel")
    if image.ndim == 2:
        image = image[:, :, None]
    channels = image.shape[2]
    if channels in (1, 2):  # grey, grey with alpha
        image = np.concatenate([image[:, :, :1]] * 3 + [image[:, :, 1:]], axis=2)
    if channels in (2, 4):
        colour, alpha = image[:, :, :3].astype(np.uint32), image[:, :, 3:].astype(np.uint32)
        image = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(image)
