"""Pictures of every kind that people have: depth, colours, alpha, turned, stacked, damaged."""

import os
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from cleanprior.config import build, compose
from cleanprior.data import image_folder, image_zip
from cleanprior.data.pictures import PictureReader
from cleanprior.errors import UserError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def read(image, resolution=8, channels=1, limits=None, name="x.png"):
    return PictureReader(resolution, channels, limits)(image, name)


def stored(image, kind, **options):
    """The picture as Pillow opens it from a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def png_of_sixteen_bits(pixels):
    """A PNG with 16 bits a channel, which Pillow cannot write."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def folder_of(root, pixels, suffix=".tif"):
    root.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(pixels):
        Image.fromarray(array).save(root / f"{i}{suffix}")
    return str(root)


def frames(n, low, high, dtype=np.uint16, side=8):
    x = np.random.default_rng(0).uniform(low, high, (n, side, side))
    x[:, 0, 0], x[:, 0, 1] = low, high
    return x.round().astype(dtype)


# -- depth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_sixteen_bits_keep_every_level(kind):
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16
    x = read(stored(Image.fromarray(pixels), kind), 64)
    assert len(x.unique()) == 4096
    expected = torch.from_numpy(pixels.astype(np.float64) / 65535 * 2 - 1)
    assert (x[0] - expected).abs().max() < 1e-6
    half = read(stored(Image.fromarray(pixels), kind), 32)
    blocks = expected.reshape(32, 2, 32, 2).mean((1, 3))
    assert (half[0] - blocks).abs().max() < 1e-6


def test_big_endian_sixteen_bits():
    pixels = (RAMP * 65535).astype(np.uint16)
    image = Image.frombytes("I;16B", (8, 8), pixels.astype(">u2").tobytes())
    assert torch.allclose(read(image)[0], torch.from_numpy(RAMP * 2 - 1).float(), atol=1e-4)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_png_with_sixteen_bits_a_channel_is_not_cut_to_eight(channels):
    pixels = np.random.default_rng(1).integers(0, 65536, (8, 8, channels), dtype=np.uint16)
    if channels in (2, 4):
        pixels[:, :, -1] = 65535
    x = read(Image.open(BytesIO(png_of_sixteen_bits(pixels))), channels=3)
    colours = pixels[:, :, : 1 if channels == 2 else 3].astype(np.float64) / 65535 * 2 - 1
    expected = torch.from_numpy(colours).permute(2, 0, 1).expand(3, 8, 8)
    assert (x - expected).abs().max() < 1e-6


def test_a_tiff_with_sixteen_bits_a_channel_is_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((8, 8, 3), np.uint16), photometric="rgb")
    refused = pytest.raises(UserError, match=r"x\.tif' has 16 bits a channel.*save it as PNG")
    with Image.open(tmp_path / "x.tif") as image, refused:
        read(image, name="x.tif")


@pytest.mark.parametrize("high", [4095, 227])
def test_values_far_below_their_type_are_refused_with_what_to_set(tmp_path, high):
    low = 100 if high == 227 else 0
    path = folder_of(tmp_path / "x", frames(8, low, high))
    advice = rf"data\.range=\[0,{4095 if high == 4095 else 255}\]"
    with pytest.raises(UserError, match=f"values lie from {low} to {high}.*65535.*{advice}"):
        image_folder(path, 8, 1, 0.3)
    data = image_folder(path, 8, 1, 0.3, range=[low, high])
    assert (data.train.min(), data.train.max()) == (-1, 1)
    assert len(data.train.unique()) > 50


def test_a_range_holds_for_a_zip_and_is_a_key_of_both(tmp_path):
    import zipfile

    folder = folder_of(tmp_path / "x", frames(8, 0, 4095))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in os.listdir(folder):
            archive.write(os.path.join(folder, name), name)
    data = image_zip(str(tmp_path / "x.zip"), 8, 1, 0.3, None, False, [0, 4095])
    for kind, path in (("folder", folder), ("zip", f"{folder}.zip")):
        own = ["data.resolution=8", "data.channels=1", "data.test_share=0.3"]
        keys = [f"data={kind}", f"data.path={path}", "data.range=[0,4095]", *own]
        assert torch.equal(build(compose(keys)["data"]).train, data.train)


def test_values_outside_the_range_are_refused_and_the_file_is_named(tmp_path):
    path = folder_of(tmp_path / "x", frames(8, 0, 4095))
    with pytest.raises(UserError, match=r"tif' holds values from 0 to 4095; data\.range=\[0,255\]"):
        image_folder(path, 8, 1, 0.3, range=[0, 255])


@pytest.mark.parametrize("bad", [[1, 0], [0], [0, float("inf")]])
def test_a_range_that_is_none_is_refused(bad):
    with pytest.raises(UserError, match="is not a range; allowed"):
        PictureReader(8, 1, bad)


def test_dark_pictures_are_refused_and_a_declared_range_is_told(tmp_path, caplog):
    path = folder_of(tmp_path / "x", frames(8, 0, 2, np.uint8), ".png")
    with pytest.raises(UserError, match=r"from 0 to 2, which is 0\.78%.*set data\.range=\[0,2\]"):
        image_folder(path, 8, 1, 0.3)
    declared = image_folder(path, 8, 1, 0.3, range=[0, 255])
    (notice,) = [n for n in declared.notices if n.is_warning]
    assert "almost a constant" in notice.text
    assert notice.text in caplog.messages
    assert not [n for n in image_folder(path, 8, 1, 0.3, range=[0, 2]).notices if n.is_warning]


def test_half_a_range_that_is_never_used_is_told(tmp_path):
    path = folder_of(tmp_path / "x", frames(8, 0, 16383))  # a camera of 14 bits
    (notice,) = [n for n in image_folder(path, 8, 1, 0.3).notices if n.is_warning]
    assert "upper half of the range [0, 65535] is never used" in notice.text
    assert "data.range=[0,16383]" in notice.text


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_data_set_is_refused(tmp_path, value):
    path = folder_of(tmp_path / "x", np.full((8, 8, 8), value, np.uint8), ".png")
    with pytest.raises(UserError, match=f"every value is {value}; a constant"):
        image_folder(path, 8, 1, 0.3, range=[0, 255])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_need_a_range(tmp_path, dtype):
    pixels = frames(8, -100, 900, dtype)
    path = folder_of(tmp_path / "x", pixels)
    with pytest.raises(UserError, match=r"unknown range \(here -100 to 900\); set data\.range"):
        image_folder(path, 8, 1, 0.3)
    data = image_folder(path, 8, 1, 0.3, range=[-100, 900])
    assert (data.train.min(), data.train.max()) == (-1, 1)


def test_two_depths_in_one_folder_are_told(tmp_path):
    folder_of(tmp_path / "x", frames(4, 0, 255, np.uint8), ".png")
    path = folder_of(tmp_path / "x", frames(4, 0, 65535))
    (notice,) = [n for n in image_folder(path, 8, 1, 0.3).notices if n.is_warning]
    assert "different depths, each scaled by its own range: [0, 255] and [0, 65535]" in notice.text


# -- colours, alpha, orientation -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_of_eight_bits_show_the_same_grey_ramp(mode):
    grey = (RAMP.round() if mode == "1" else RAMP) * 255
    image = Image.fromarray(grey.astype(np.uint8))
    image = image.convert("RGB").convert(mode) if mode in ("CMYK", "HSV") else image.convert(mode)
    x = read(image, channels=3)
    expected = torch.from_numpy(grey.astype(np.uint8) / 127.5 - 1).expand(3, 8, 8)
    assert (x - expected).abs().max() < 0.03


def test_colours_that_are_not_read_are_refused():
    with pytest.raises(UserError, match=r"x\.png' has colours of mode LAB"):
        read(Image.new("LAB", (8, 8)))


@pytest.mark.parametrize("how", ["RGBA", "LA", "palette", "colour key"])
def test_transparent_pixels_are_white(how):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4, 3] = 255
    image = Image.fromarray(pixels)
    if how == "LA":
        image = image.convert("LA")
    elif how == "palette":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.paste(0, (0, 0, 4, 8))
        image = stored(image, "PNG", transparency=1)
    elif how == "colour key":
        image = Image.new("RGB", (8, 8), (255, 0, 0))
        image.paste((0, 0, 0), (0, 0, 4, 8))
        image = stored(image, "PNG", transparency=(255, 0, 0))
    reader = PictureReader(8, 3, None)
    x = reader(image, "x.png")
    assert x[:, :, :4].unique().tolist() == [-1]
    assert x[:, :, 4:].unique().tolist() == [1]
    assert "1 pictures are transparent in places, white there" in reader.notices("x")[0].text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_turned_as_a_viewer_shows_them(kind, orientation):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255  # bright above
    image = Image.fromarray(pixels).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = orientation
    x = read(stored(image, kind, exif=exif), 16)[0]
    bright = {1: x[:6], 3: x[-6:], 6: x[:, -6:], 8: x[:, :6]}[orientation]
    assert bright.min() > 0.9


# -- stacks ----------------------------------------------------------------------------------------


def stack(path, pixels):
    first, *others = [Image.fromarray(p) for p in pixels]
    first.save(path, save_all=True, append_images=others)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".gif"])
def test_frames_of_a_stack_are_images_of_one_split(tmp_path, suffix):
    pixels = frames(15, 0, 255, np.uint8)
    pixels[:, 4:] = (np.arange(15) * 17)[:, None, None]
    for i in range(3):
        stack(tmp_path / f"{i}{suffix}", pixels[5 * i : 5 * i + 5])
    data = image_folder(str(tmp_path), 8, 1, 0.3)
    assert len(data.train) + len(data.test) == 15
    values = [round(float(x[0, 6, 6] + 1) * 127.5 / 17) // 5 for x in data.test]
    assert {values.count(v) for v in values} == {5}
    told = " ".join(n.text for n in data.notices)
    assert "3 files hold several frames; each frame is an image (15)" in told
    limited = image_folder(str(tmp_path), 8, 1, 0.3, limit=4)
    assert len(limited.train) == 4


def test_one_stack_alone_is_split_by_its_frames(tmp_path):
    stack(tmp_path / "x.tif", frames(12, 0, 65535))
    data = image_folder(str(tmp_path), 8, 1, 0.3)
    assert len(data.train) + len(data.test) == 12
    assert len(data.test) >= 2


def test_pages_of_different_sizes_and_animations_are_refused(tmp_path):
    for i in range(3):
        Image.fromarray(frames(1, 0, 255, np.uint8)[0]).save(tmp_path / f"{i}.png")
    pages = [Image.new("L", (side, side), 9) for side in (8, 4)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=r"x\.tif' is not a readable image.*different sizes"):
        image_folder(str(tmp_path), 8, 1, 0.3)
    (tmp_path / "x.tif").unlink()
    film = [Image.new("L", (8, 8), v) for v in (1, 200)]
    film[0].save(tmp_path / "x.png", save_all=True, append_images=film[1:])
    with pytest.raises(UserError, match=r"x\.png' is not a readable image.*animated, 2 frames"):
        image_folder(str(tmp_path), 8, 1, 0.3)


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "x"
    folder_of(root, frames(4, 0, 255, np.uint8), ".png")
    return root


def text_bomb():
    """A PNG whose text chunk unpacks to more than Pillow allows."""
    content = png_of_sixteen_bits(np.zeros((4, 4, 1), np.uint16))
    text = b"note\0\0" + zlib.compress(b"\0" * (1 << 21))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return content[:33] + chunk + content[33:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".gif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_a_truncated_picture_is_one_line_that_names_it(pictures, suffix, share):
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / f"bad{suffix}")
    content = (pictures / f"bad{suffix}").read_bytes()
    (pictures / f"bad{suffix}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"bad\{suffix}' is not a readable image") as caught:
        image_folder(str(pictures), 8, 1, 0.3)
    assert "\n" not in str(caught.value)


def test_a_text_chunk_a_huge_picture_and_a_dangling_link_are_named(pictures, monkeypatch):
    (pictures / "bad.png").write_bytes(text_bomb())
    with pytest.raises(UserError, match=r"bad\.png' is not a readable image.*too large"):
        image_folder(str(pictures), 8, 1, 0.3)
    (pictures / "bad.png").unlink()
    (pictures / "bad.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"bad\.png' is not a readable image.*No such file"):
        image_folder(str(pictures), 8, 1, 0.3)
    (pictures / "bad.png").unlink()
    Image.new("L", (64, 64)).save(pictures / "bad.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"bad\.png' is not a readable image.*exceeds limit"):
        image_folder(str(pictures), 8, 1, 0.3)


def test_all_unreadable_pictures_are_named_at_once(pictures):
    for i in range(3):
        (pictures / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"nor are 2 others: .*bad") as caught:
        image_folder(str(pictures), 8, 1, 0.3)
    assert all(f"bad{i}.png" in str(caught.value) for i in range(3))


def test_a_picture_that_may_not_be_read_is_named(pictures):
    (pictures / "0.png").chmod(0)
    if os.access(pictures / "0.png", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match=r"0\.png.*Permission denied"):
        image_folder(str(pictures), 8, 1, 0.3)


def test_nan_in_a_picture_is_refused(pictures):
    pixels = np.zeros((8, 8), np.float32)
    pixels[2, 2] = np.nan
    path = folder_of(pictures, [pixels])
    with pytest.raises(UserError, match=r"0\.tif' holds NaN or infinity"):
        image_folder(path, 8, 1, 0.3, range=[0, 255])
