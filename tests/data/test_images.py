import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ppvilg.data import images
from ppvilg.data.images import UnusableImageError, decode_image, decode_squares, encode_jpeg


def encode(image, kind, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width=40, height=30, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values if channels > 1 else values[:, :, 0])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_lossless_kinds_are_exact(kind):
    image = noise(32, 32)
    decoded = decode_image(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})), 32)
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(decoded, np.asarray(image))


def test_centre_square_is_cut_out():
    values = np.zeros((10, 30, 3), np.uint8)
    values[:, 10:20] = (200, 100, 50)
    decoded = decode_image(encode(Image.fromarray(values), "PNG"), 5)
    assert (decoded == (200, 100, 50)).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(kind):
    values = np.zeros((4, 4, 4), np.uint8)
    values[..., 0], values[..., 3] = 255, [0, 128, 255, 255]
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode_image(encode(Image.fromarray(values, "RGBA"), kind, **options), 4)
    assert decoded[0].tolist() == [[255, 255, 255], [255, 127, 127], [255, 0, 0], [255, 0, 0]]


def test_grey_with_alpha():
    values = np.array([[[0, 0], [0, 255]], [[100, 255], [100, 0]]], np.uint8)
    decoded = decode_image(encode(Image.fromarray(values, "LA"), "PNG"), 2)
    assert decoded[..., 0].tolist() == [[255, 0], [100, 255]]
    assert (decoded[..., :1] == decoded).all()


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image = image.resize((4, 4), Image.Resampling.NEAREST)
    decoded = decode_image(encode(image, "PNG", transparency=0), 4)
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[0, 3].tolist() == [0, 0, 255]


def test_grey():
    image = noise(8, 8, 1)
    decoded = decode_image(encode(image, "PNG"), 8)
    np.testing.assert_array_equal(decoded, np.asarray(image)[:, :, None].repeat(3, 2))


def test_sixteen_bits():
    values = np.full((8, 8), 0x8080, np.uint16)
    assert (decode_image(encode(Image.fromarray(values), "PNG"), 8) == 0x80).all()


def test_cmyk_jpeg():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode_image(encode(image, "JPEG", quality=95), 16).astype(int)
    assert abs(decoded - (255, 0, 0)).max() < 40


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("WEBP", "RGBA")]
)
def test_camera_orientation_is_applied_as_pillow_does(kind, mode, orientation):
    blocks = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    image, exif = Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:23]).convert(mode), Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = encode(image, kind, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    top, left = (upright.shape[0] - 23) // 2, (upright.shape[1] - 23) // 2
    np.testing.assert_array_equal(decode_image(data, 23), upright[top : top + 23, left : left + 23])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_orientation_is_none(kind):
    image = noise(16, 16)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    expected = decode_image(encode(image, kind, **options), 16)
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"rubbish"):
        np.testing.assert_array_equal(decode_image(encode(image, kind, exif=exif, **options), 16), expected)
    exif = Image.Exif()
    exif[0x0112] = 77
    np.testing.assert_array_equal(decode_image(encode(image, kind, exif=exif, **options), 16), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "BMP", "GIF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.98])
def test_truncated(kind, part):
    data = encode(noise(64, 64), kind)
    with pytest.raises(ValueError, match=r"truncated|image"):
        decode_image(data[: int(len(data) * part)], 8)


def test_truncated_jpeg_with_thumbnail():
    thumbnail = encode(noise(8, 8), "JPEG")
    data = encode(noise(64, 64), "JPEG")
    data = data[:2] + b"\xff\xe5" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    assert decode_image(data, 8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="truncated"):
        decode_image(data[:-200], 8)


def test_bomb_is_refused_before_decoding(monkeypatch):
    import cv2

    data = encode(Image.new("1", (20_000, 20_000)), "PNG")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="too large"):
        decode_image(data, 8)


def test_long_thin_image_needs_little_memory():
    assert decode_image(encode(Image.new("RGB", (30_000, 1)), "PNG"), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"hello, world, this is text", b"\x89PNG\r\n\x1a\n", b"<svg></svg>" * 9])
def test_not_an_image(data):
    with pytest.raises(ValueError, match="image"):
        decode_image(data, 8)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_images_never_do_worse_than_a_user_error(data):
    kind = data.draw(st.sampled_from(["PNG", "WEBP", "JPEG", "GIF", "BMP"]))
    content = bytearray(encode(noise(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert decode_image(bytes(content), 8).shape == (8, 8, 3)


def test_limit_is_below_the_one_pillow_warns_at():
    assert images.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_limit():
    assert decode_image(encode(noise(), "PNG"), 8, 1200).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="40x30 pixels"):
        decode_image(encode(noise(), "PNG"), 8, 1199)


def test_several_squares_of_one_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(noise(90, 40), "JPEG", exif=exif.tobytes())
    squares, size = decode_squares(data, [16, 40, 64])
    assert size == (40, 90)
    assert list(squares) == [16, 40, 64]
    for side, square in squares.items():
        np.testing.assert_array_equal(square, decode_image(data, side))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"text", "not an image"),
        (encode(noise(), "JPEG")[:-10], "the image is truncated"),
        (encode(noise(200, 200), "PNG"), "the image is too large"),
        (b"\x89PNG\r\n\x1a\n" + b"IEND" * 9, "an image that cannot be decoded"),
    ],
)
def test_reasons_can_be_counted(data, reason):
    with pytest.raises(UnusableImageError, match=reason) as error:
        decode_image(data, 8, max_pixels=30_000)
    assert error.value.reason == reason


def test_jpeg_of_a_square():
    image = np.full((20, 20, 3), (200, 100, 50), np.uint8)
    assert np.abs(decode_image(encode_jpeg(image), 20).astype(int) - image).max() < 4
