"""Pictures that are small and dear: each is refused, read without what makes it dear, or ended."""

from __future__ import annotations

import contextlib
import errno
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmesh.errors import DeadlineExceeded, Draining, InvalidImage, Overloaded
from mmesh.models import images
from mmesh.models.pictures import jpeg
from mmesh.models.pictures.pool import DecoderPool
from tests.effort import patient
from tests.picture_bombs import encoded, jpeg_with_scans, large, slow

RED = (255, 0, 0)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(*chunks: bytes, image: Image.Image | None = None) -> bytes:
    whole = encoded(image or Image.new("RGB", (8, 8), RED), "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def cpu_s(data: bytes) -> float:
    started = time.thread_time()
    with contextlib.suppress(InvalidImage):
        images.decode(data, "p")
    return time.thread_time() - started


# -- scans


@pytest.mark.parametrize("size", [(64, 64), (7000, 7000)])
def test_a_scan_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match="over 64 scans"):
        images.decode(jpeg_with_scans(5_000, size), "p")


def test_fewer_scans_are_allowed_the_more_pixels_there_are() -> None:
    assert images.decode(jpeg_with_scans(40), "p").size == (64, 64)
    with pytest.raises(InvalidImage, match="40 scans of 7000 x 7000"):
        images.decode(jpeg_with_scans(40, (7000, 7000)), "p")


def test_a_scan_is_not_hidden_by_what_a_decoder_skips() -> None:
    data = jpeg_with_scans(3)
    first = data.index(jpeg.SCAN)
    scan = data[first : data.index(jpeg.SCAN, first + 2)]
    hidden = {
        "fill bytes": scan.replace(jpeg.SCAN, b"\xff\xff\xff\xda"),
        "a comment": b"\xff\xfe\x00\x04\xff\xd9" + scan,
        "a marker that is none": b"\xff\x10\xff\xff" + scan,
        "restarts": b"\xff\xd0\xff\xd1" + scan,
    }
    for name, part in hidden.items():
        many = jpeg.count_scans(data[:first] + part * 20 + data[first:])
        assert many == jpeg.count_scans(data) + 20, name


def test_pictures_within_metadata_are_no_scans() -> None:
    thumbnails = [b"\xff\xe2\x40\x00" + jpeg.SCAN * 8191 for _ in range(4)]
    data = encoded(Image.new("RGB", (8, 8), RED), "JPEG")
    assert jpeg.count_scans(data[:2] + b"".join(thumbnails) + data[2:]) == 1
    assert images.decode(data[:2] + b"".join(thumbnails) + data[2:], "p").size == (8, 8)


# -- headers that lie


def png_header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png_of(*chunks: bytes, side: int) -> bytes:
    pixels = chunk(b"IDAT", zlib.compress(bytes(side * (3 * side + 1)), 1))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, pixels, chunk(b"IEND", b"")])


def gif_of(canvas: int, frame: int, before: bytes = b"") -> bytes:
    data = bytearray(encoded(Image.new("P", (frame, frame)), "GIF"))
    data[6:10] = struct.pack("<HH", canvas, canvas)
    place = data.index(b"\x2c")
    return bytes(data[:place] + before + data[place:])


def jpeg_of_two_frames(first: int, second: int) -> bytes:
    data = encoded(Image.new("L", (second, second)), "JPEG")
    place = data.index(b"\xff\xc0")
    frame = data[place : place + 2 + int.from_bytes(data[place + 2 : place + 4])]
    small = frame[:5] + struct.pack(">HH", first, first) + frame[9:]
    return data[:place] + small + data[place:]


@pytest.mark.parametrize(
    "chunks",
    [(png_header(1, 1), png_header(90, 90)), (chunk(b"tEXt", b"k\0v"), png_header(90, 90))],
    ids=["two headers", "a header that is not first"],
)
def test_a_png_has_one_header_at_its_start(chunks: tuple[bytes, ...]) -> None:
    assert images.decode(png_of(png_header(90, 90), side=90), "p").size == (90, 90)
    with pytest.raises(InvalidImage, match="header"):
        images.decode(png_of(*chunks, side=90), "p")


@pytest.mark.parametrize("before", [b"", b"\0\0junk", b"!\xfe\x01x\0\0!\xf9\4\0\0\0\0\0"])
def test_the_work_of_a_gif_is_that_of_the_picture_which_it_grows_to(before: bytes) -> None:
    data = gif_of(1, 90, before)
    assert images.read_size(data, "p") == images.decode(data, "p").size == (90, 90)
    assert images.work_of(data) == 90 * 90


def test_a_gif_whose_frame_comes_late_is_taken_for_dear() -> None:
    assert images.work_of(gif_of(1, 90, b"!\xfe\0" * 100)) > images.APART_WORK


def test_a_picture_that_exceeds_its_stated_size_is_refused() -> None:
    with pytest.raises(InvalidImage, match="90 x 90 pixels, though its header states 8 x 8"):
        images.decode(jpeg_of_two_frames(8, 90), "p")


# -- metadata


LONG = zlib.compress(bytes(4 << 20))
METADATA = {
    "compressed text": chunk(b"zTXt", b"key\0\0" + LONG),
    "international text": chunk(b"iTXt", b"key\0\1\0\0\0" + LONG),
    "plain text": chunk(b"tEXt", b"key\0" + b"x" * (4 << 20)),
    "a colour profile": chunk(b"iCCP", b"name\0\0" + LONG),
    "a broken profile": chunk(b"iCCP", b"name\0\1" + LONG),
    "a checksum": chunk(b"tEXt", b"key\0value")[:-4] + bytes(4),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=list(METADATA))
def test_a_png_is_read_whatever_its_metadata(metadata: bytes) -> None:
    assert images.decode(png_with(metadata), "p").getpixel((4, 4)) == RED


def exif_of_many(entries: int) -> bytes:
    """Return a directory of which every entry points to all of a megabyte."""
    tags = [struct.pack("<HHII", 0x9000 + n, 7, 1 << 20, 0) for n in range(entries - 1)]
    turn = struct.pack("<HHII", 0x0112, 3, 1, 6)
    return b"II*\0" + struct.pack("<IH", 8, entries) + turn + b"".join(tags) + bytes(1 << 20)


def test_exif_is_not_followed() -> None:
    image = Image.new("RGB", (8, 4), RED)
    bomb = png_with(chunk(b"eXIf", exif_of_many(5_000)), image=image)
    assert images.decode(bomb, "p").size == (4, 8)
    assert cpu_s(bomb) < 0.5


def test_orientation_is_read_from_xmp_where_exif_has_none() -> None:
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    image = Image.new("RGB", (8, 4), RED)
    assert images.decode(png_with(chunk(b"iTXt", xmp), image=image), "p").size == (4, 8)
    webp = encoded(image, "WEBP", xmp=b'<x tiff:Orientation="6"/>')
    assert images.decode(webp, "p").size == (4, 8)


def many_parts() -> dict[str, bytes]:
    whole = encoded(Image.new("RGB", (8, 8), RED), "JPEG")
    gif = encoded(Image.new("P", (8, 8)), "GIF")
    place = gif.index(b"\x2c")
    return {
        "chunks": png_with(chunk(b"teXt", b"") * 500_000),
        "segments": whole[:2] + b"\xff\xfe\x00\x02" * 1_000_000 + whole[2:],
        "fill bytes": whole[:2] + b"\xff" * (16 << 20),
        "junk": whole[:2] + bytes(16 << 20) + whole[2:],
        "blocks": gif[:place] + b"!\xfe" + b"\x01x" * 4_000_000 + b"\0" + gif[place:],
        "extensions": gif[:place] + b"!\xfe\0" * 4_000_000 + gif[place:],
        "junk between blocks": gif[:place] + bytes(16 << 20) + gif[place:],
        "extensions behind junk": gif[:place] + b"\0" + b"!\xfe\0" * 4_000_000 + gif[place:],
    }


@pytest.mark.parametrize(("name", "data"), many_parts().items(), ids=list(many_parts()))
def test_many_small_parts_cost_little(name: str, data: bytes) -> None:
    assert cpu_s(data) < 0.5, name


# -- processes


@pytest.fixture(scope="module")
def pool() -> Any:
    with DecoderPool() as pool:
        yield pool


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("WEBP", "RGB"), ("PNG", "I;16")])
def test_pixels_are_the_same_from_another_process(pool: DecoderPool, kind: str, mode: str) -> None:
    if mode == "I;16":
        data = encoded(Image.fromarray(np.full((3000, 4000), 40_000, np.uint16)), "PNG")
    else:
        data = large(kind, mode)
    here = images.decode(data, "p")
    with images.decoding_apart(pool, lambda: True):
        there = images.decode(data, "p")
    assert there.tobytes() == here.tobytes()


def test_what_a_process_refuses_names_the_field(pool: DecoderPool) -> None:
    broken = large()[:-5000]
    with images.decoding_apart(pool, lambda: True):
        with pytest.raises(InvalidImage, match="broken PNG") as refused:
            images.decode(broken, "parts[0]")
        assert refused.value.field == "parts[0]"
        assert images.decode(large(), "p").size == (4000, 3000)


def test_a_picture_that_takes_too_much_memory_is_refused() -> None:
    wide = encoded(Image.new("RGB", (7000, 7000)), "PNG", compress_level=1)
    with DecoderPool(memory_bytes=200 << 20) as pool, images.decoding_apart(pool, lambda: True):
        with pytest.raises(InvalidImage, match="too much memory"):
            images.decode(wide, "p")
        assert images.decode(encoded(Image.new("RGB", (8, 8)), "PNG"), "p").size == (8, 8)


def test_a_picture_that_takes_too_long_is_refused() -> None:
    """CPU time is counted in whole seconds, so one of several is."""
    with (
        DecoderPool(cpu_s=0.1) as pool,
        images.decoding_apart(pool, lambda: True),
        pytest.raises(InvalidImage, match=r"takes over 0\.1 s"),
    ):
        list(map(images.decode, [slow()] * 20, "p" * 20))


def test_a_caller_who_goes_away_frees_the_process(pool: DecoderPool) -> None:
    asked = iter(range(1000))
    with images.decoding_apart(pool, lambda: next(asked) < 1), pytest.raises(DeadlineExceeded):
        images.decode(slow(), "p")
    with images.decoding_apart(pool, lambda: True):
        assert images.decode(large(), "p").size == (4000, 3000)


def test_a_process_that_was_ended_is_replaced(pool: DecoderPool) -> None:
    with images.decoding_apart(pool, lambda: True):
        images.decode(large(), "p")
        (process,) = pool._all
        process._popen.kill()
        assert images.decode(large(), "p").size == (4000, 3000)


def test_a_picture_is_not_to_blame_for_what_happens_to_its_process(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(process: Any, *_: object) -> None:
        process._popen.kill()
        tries.append(process)

    tries: list[Any] = []
    with monkeypatch.context() as patch, images.decoding_apart(pool, lambda: True):
        patch.setattr("mmesh.models.pictures.pool._Process._send", send)
        with pytest.raises(Overloaded, match="was ended"):
            images.decode(large(), "p")
        assert len(tries) == 2
        patch.setattr("mmesh.models.pictures.pool.WALL_S", 0.0)
        patch.setattr("mmesh.models.pictures.pool._Process._send", lambda *_: None)
        with pytest.raises(Overloaded, match="too little CPU time"):
            images.decode(large(), "p")
    with images.decoding_apart(pool, lambda: True):
        assert images.decode(large(), "p").size == (4000, 3000)


def test_a_picture_is_not_to_blame_when_no_process_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with DecoderPool() as pool, images.decoding_apart(pool, lambda: True):
        for _ in range(2):
            with pytest.raises(Overloaded, match="temporarily unavailable"):
                images.decode(large(), "p")


def test_a_pool_that_closes_blames_nobodys_picture() -> None:
    pool = DecoderPool()
    with images.decoding_apart(pool, lambda: True):
        images.decode(large(), "p")

    def closing() -> bool:
        pool.close()
        return True

    with images.decoding_apart(pool, closing), pytest.raises(Draining):
        images.decode(slow(), "p")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), Overloaded),
        (OSError(errno.EMFILE, "Too many open files"), Overloaded),
        (OSError("unrecognized data stream contents"), InvalidImage),
    ],
)
def test_only_the_picture_makes_a_picture_broken(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(images, "pixels_of", fail)
    with pytest.raises(said):
        images.decode(png_with(), "p")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


OWNER = """
import sys
from mmesh.models import images
from mmesh.models.pictures.pool import DecoderPool
data, pool = sys.stdin.buffer.read(), DecoderPool()
with images.decoding_apart(pool, lambda: True):
    images.decode(data, "p")
    print(*(process._popen.pid for process in pool._all), flush=True)
    while True:
        images.decode(data, "p")
"""


def test_a_process_ends_with_its_owner_in_the_middle_of_a_picture() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=PIPE, stdout=PIPE)
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write(large())
    owner.stdin.close()
    worker = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + patient(10)
    while is_running(worker):
        assert time.monotonic() < until, "the decoder outlives its owner"
        time.sleep(0.02)


def test_huge_pictures_are_reduced_alike_in_all_formats() -> None:
    image = Image.new("RGB", (6001, 4001), RED)
    image.paste((0, 0, 255), (0, 0, 3000, 4001))
    for kind in ("JPEG", "PNG"):
        found = images.decode(encoded(image, kind), "p")
        assert found.size == (3001, 2001)
        assert found.getpixel((100, 100))[2] > 250
        assert found.getpixel((2900, 1900))[0] > 250


# -- the ground


def drawing(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (40, 40))
    image.paste((*colour, 255), (10, 10, 30, 20))
    return image


@pytest.mark.parametrize("colour", [(255, 255, 255), (250, 250, 250), (255, 255, 230)])
def test_a_drawing_that_white_would_hide_is_laid_on_black(colour: tuple[int, int, int]) -> None:
    pixels = images.decode(encoded(drawing(colour), "PNG"), "p")
    assert pixels.getpixel((0, 0)) == (0, 0, 0)
    assert pixels.getpixel((15, 15)) == colour


@pytest.mark.parametrize("colour", [(0, 0, 0), (200, 200, 200), (255, 255, 0)])
def test_a_drawing_that_is_seen_on_white_stays_on_it(colour: tuple[int, int, int]) -> None:
    pixels = images.decode(encoded(drawing(colour), "PNG"), "p")
    assert pixels.getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_of_which_nothing_is_drawn_is_white() -> None:
    pixels = images.decode(encoded(Image.new("RGBA", (8, 8)), "PNG"), "p")
    assert pixels.getpixel((4, 4)) == (255, 255, 255)
