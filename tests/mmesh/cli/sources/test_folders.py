"""Folders of pictures: what is read, and what is passed over and counted."""

from __future__ import annotations

import inspect
import io
import os
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import features

from mmesh.cli.files.sources import folders, pictures
from mmesh.cli.files.sources.folders import FolderRules

PASSED_OVER = "passed over"


@pytest.fixture
def folder(tmp_path):
    """Make a folder of these files."""

    def make(**files) -> None:
        for name, data in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return tmp_path

    return make


def exif(orientation=1, taken="", offset=""):
    made = Pillow.Exif()
    made[0x0112] = orientation
    details = made.get_ifd(0x8769)
    if taken:
        details[0x9003] = taken
    if offset:
        details[0x9011] = offset
    return made


def test_what_systems_leave_behind_is_passed_over_and_counted(read, folder, picture):
    jpeg = picture("JPEG")
    found = read(folder(**{
        "IMG_1.jpg": jpeg, "._IMG_1.jpg": b"\0" * 9, "empty.jpg": b"", ".hidden.jpg": jpeg,
        "@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_S.jpg": jpeg, ".thumbnails/IMG_1.png": jpeg,
        "__MACOSX/._IMG_1.jpg": b"\0", ".Trash-1000/files/x.jpg": jpeg, "Thumbs.db": b"x",
        "film.MP4": b"x", "b.mp4": b"x", "drawing.svg": "<svg/>", "notes": "words",
        "rows.csv": "id,text\n", "lonely.txt": "words",
    }))  # fmt: skip
    assert (found.ids, found.refused) == (["IMG_1.jpg"], [])
    said = found.notes[PASSED_OVER]
    for words in (
        "2 thumbnails",
        "3 leftovers of systems",
        "2 hidden",
        "1 empty (empty.jpg)",
        "4 files of other formats (.mp4 x2, ",
        "1 texts without a picture (lonely.txt)",
        "1 files of rows",
    ):
        assert words in said, said


def test_of_texts_that_differ_by_case_each_goes_to_the_picture_of_its_name(read, folder, picture):
    root = folder(**{
        "Cat.jpg": picture("JPEG"), "Cat.txt": "large", "cat.jpg": picture("PNG"),
        "cat.txt": "small", "DOG.JPG": picture("GIF"), "dog.txt": "a dog",
        "owl.jpg": picture("WEBP"), "OWL.txt": "surplus", "owl.TXT": "an owl",
    })  # fmt: skip
    if len(os.listdir(root)) < 9:
        pytest.skip("this file system does not tell letters by case")
    found = read(root)
    said = {one.id: one.content.text for one in found.candidates}
    assert said == {"Cat.jpg": "large", "cat.jpg": "small", "DOG.JPG": "a dog", "owl.jpg": "an owl"}
    assert "1 texts without a picture (OWL.txt)" in found.notes[PASSED_OVER]


def test_a_folder_without_a_picture_is_said(read, folder):
    found = read(folder(**{"notes.txt": "words"}))
    assert (found.ids, found.refused) == ([], [])
    assert "folders without a picture" in found.notes[PASSED_OVER]


@pytest.mark.parametrize(
    ("name", "kind", "taken_as"),
    [
        ("a.jpe", "JPEG", "JPEG"),
        ("a.jfif", "JPEG", "JPEG"),
        ("noext", "JPEG", "JPEG"),
        ("a.bmp", "BMP", "PNG"),
        ("a.tif", "TIFF", "PNG"),
        ("wrong.png", "BMP", "PNG"),
        ("a.avif", "AVIF", "JPEG"),
        ("a.jp2", "JPEG2000", "JPEG"),
    ],
)
def test_pictures_of_other_formats_are_converted(read, folder, picture, name, kind, taken_as):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = picture(kind)
    found = read(folder(**{name: data}))
    assert (found.ids, found.refused) == ([name], [])
    image = found.candidates[0].content.images[0]
    assert pictures.format_of(image.data[:32]) == taken_as
    facts = found.attributes(name)
    assert (facts["width"], facts["height"], facts["path"]) == (8, 6, name)
    if pictures.format_of(data[:32]) == taken_as:
        assert image.data == data
        assert "pictures converted" not in found.notes
    else:
        assert f" to {taken_as} ({name})" in found.notes["pictures converted"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_tiff_of_any_depth_is_converted(read, folder, picture, mode):
    found = read(folder(**{"a.tif": picture("TIFF", mode)}))
    assert (found.ids, found.refused) == (["a.tif"], [])


def test_sixteen_bits_keep_their_brightness(read, folder):
    out = io.BytesIO()
    Pillow.new("I;16", (4, 4), 32768).save(out, "TIFF")
    found = read(folder(**{"a.tif": out.getvalue()}))
    with Pillow.open(io.BytesIO(found.candidates[0].content.images[0].data)) as made:
        assert made.convert("L").getpixel((0, 0)) == pytest.approx(128, abs=1)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "PNG", "JPEG", "WEBP"])
def test_width_and_height_are_of_the_upright_picture(read, folder, kind, orientation):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    out = io.BytesIO()
    Pillow.new("RGB", (30, 20)).save(out, kind, exif=exif(orientation))
    found = read(folder(a=out.getvalue())).attributes("a")
    upright = (20, 30) if orientation >= 6 else (30, 20)
    assert (found["width"], found["height"]) == upright


@pytest.mark.parametrize("place", [(0, 0), (2, 3)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_in_a_picture_of_floats_leaves_the_others_as_they_are(
    read, folder, place, bad
):
    pixels = np.linspace(-1, 3, 20, dtype=np.float32).reshape(4, 5)
    pixels[place] = bad

    def made(array):
        out = io.BytesIO()
        Pillow.fromarray(array).save(out, "TIFF")
        found = read(folder(**{"a.tif": out.getvalue()}))
        with Pillow.open(io.BytesIO(found.candidates[0].content.images[0].data)) as picture:
            return np.asarray(picture.convert("L")).astype(int)

    grey = made(pixels)
    finite = pixels[np.isfinite(pixels)]
    assert grey[place] == (255 if bad > 0 else 0)
    wanted = (pixels - finite.min()) * 255 / (finite.max() - finite.min())
    others = np.isfinite(pixels)
    np.testing.assert_allclose(grey[others], wanted[others], atol=1)


def test_a_picture_of_no_numbers_at_all_is_refused(read, folder):
    out = io.BytesIO()
    Pillow.fromarray(np.full((4, 4), np.nan, np.float32)).save(out, "TIFF")
    found = read(folder(**{"a.tif": out.getvalue()}))
    assert "has no pixel that is a number" in found.refused[0].reason


def test_heic_is_read_or_what_is_to_be_installed_is_said(read, folder, monkeypatch):
    monkeypatch.setattr(pictures, "_knows_heic", lambda: False)
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    found = read(folder(**{"phone.heic": head, "named.jpg": head}))
    assert "1 HEIC needs pip install 'mmesh[pictures]' (phone.heic)" in found.notes[PASSED_OVER]
    assert "pip install 'mmesh[pictures]'" in found.refused[0].reason
    assert found.passed_over == ["phone.heic"]  # so it is not gone


def test_a_folder_that_cannot_be_read_is_refused_alone(read, folder, picture, monkeypatch):
    root = folder(**{"a.png": picture(), "closed/b.png": picture(), "open/c.png": picture()})
    scan = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = read(root)
    assert found.ids == ["a.png", "open/c.png"]
    assert (found.refused_ids, found.refused[0].hides) == (["closed"], True)


def test_heic_of_a_phone_is_read(read, folder):
    pytest.importorskip("pi_heif", reason="HEIC is absent: run `make setup-all`")
    found = read(folder(**{"phone.heic": (Path(__file__).parent / "phone.heic").read_bytes()}))
    assert (found.ids, found.refused) == (["phone.heic"], [])
    facts = found.attributes("phone.heic")
    assert (facts["width"], facts["height"]) == (40, 64)
    assert facts["taken"] == datetime(2024, 1, 31, 12, tzinfo=UTC)


def test_a_broken_picture_of_another_format_is_refused_alone(read, folder, picture):
    found = read(folder(**{"a.tif": picture("TIFF")[:40], "b.png": picture()}))
    assert (found.ids, found.refused_ids) == (["b.png"], ["a.tif"])


def test_facts_of_a_photo_become_attributes(read, folder, picture, rules):
    data = picture("JPEG", exif=exif(6, "2024:01:31 12:00:00", "+02:00"))
    made = folder(
        **{
            "in/a.jpg": data,
            "b.jpg": picture("JPEG", exif=exif(taken="2024:01:31 12:00:00")),
            "c.jpg": picture("JPEG", exif=exif(taken="0000:00:00 00:00:00")),
            "d.jpg": b"\xff\xd8\xffbroken",
        }
    )
    found = read(made)
    assert found.attributes("in/a.jpg") == {
        "path": "in/a.jpg",
        "width": 6,
        "height": 8,
        "taken": datetime(2024, 1, 31, 10, tzinfo=UTC),
    }
    assert found.attributes("b.jpg")["taken"] == datetime(2024, 1, 31, 12, tzinfo=UTC)
    assert "taken" not in found.attributes("c.jpg")
    assert found.attributes("d.jpg") == {"path": "d.jpg"}
    found = read(made, columns=rules(ignore=frozenset({"path", "taken"})))
    assert found.attributes("in/a.jpg") == {"width": 6, "height": 8}


def test_captions_are_found_and_decoded(read, folder, picture):
    png = picture()
    found = read(folder(**{
        "bom.png": png, "bom.txt": b"\xef\xbb\xbfa cat", "latin.png": png, "latin.txt": b"caf\xe9",
        "empty.png": png, "empty.txt": b" \n", "upper.png": png, "UPPER.TXT": "a dog",
        "full.png": png, "full.png.txt": "the whole name", "full.txt": "the stem",
        "utf16.png": png, "utf16.txt": "Möwe".encode("utf-16"),
    }))  # fmt: skip
    texts = {one.id: one.content.text for one in found.candidates}
    assert texts == {
        "bom.png": "a cat",
        "latin.png": "café",
        "empty.png": "",
        "upper.png": "a dog",
        "full.png": "the whole name",
        "utf16.png": "Möwe",
    }
    assert found.refused == []
    assert "1 texts without a picture (full.txt)" in found.notes[PASSED_OVER]


def test_links_to_folders_are_followed_when_asked_and_loops_end(read, folder, tmp_path, picture):
    root = folder(**{"root/in/a.png": picture(), "other/b.png": picture()}) / "root"
    (root / "link").symlink_to(tmp_path / "other")
    (root / "in" / "up").symlink_to(root)
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "file.png").symlink_to(tmp_path / "other" / "b.png")
    os.mkfifo(root / "pipe.png")
    found = read(root)
    assert found.ids == ["file.png", "in/a.png"]
    assert "2 folders that are links (--follow-links)" in found.notes[PASSED_OVER]
    assert "1 broken links (broken.png)" in found.notes[PASSED_OVER]
    assert found.passed_over == ["broken.png"]  # if it is stored, it stays
    assert "1 neither files nor folders (pipe.png)" in found.notes[PASSED_OVER]
    found = read(root, folders=FolderRules(follow_links=True))
    assert found.ids == ["file.png", "in/a.png", "link/b.png"]
    assert "1 folders that were read already" in found.notes[PASSED_OVER]
    assert (found.passed_over, found.refused) == (["broken.png"], [])
    (tmp_path / "other").rename(tmp_path / "away")
    found = read(root, folders=FolderRules(follow_links=True))
    assert found.refused_ids == ["link"]  # what was below it is not known to be gone
    assert found.passed_over == ["broken.png", "file.png"]


def test_an_empty_file_is_a_picture_that_cannot_be_read_for_now(read, folder, picture):
    found = read(folder(**{"a.png": picture(), "b.png": b""}))
    assert (found.ids, found.passed_over) == (["a.png"], ["b.png"])
    assert "1 empty (b.png)" in found.notes[PASSED_OVER]


def test_files_of_any_size_are_read_as_far_as_a_picture_may_be_long(
    read, folder, picture, monkeypatch
):
    monkeypatch.setattr(folders, "MAX_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(folders, "MAX_CAPTION_BYTES", 1 << 20)
    root = folder(**{"a.png": picture(), "b.png": picture(), "a.txt": b"", "c.png": picture()})
    for name in ("a.txt", "b.png"):
        os.truncate(root / name, 1 << 40)  # of which the disk has next to nothing
    found = read(root)
    assert (found.ids, found.refused_ids) == (["c.png"], ["a.png", "b.png"])
    assert all("over 1 MiB" in one.reason for one in found.refused)


def test_globs_exclude_paths_names_and_folders(read, folder, picture):
    png = picture()
    names = ["a.png", "b_small.png", "raw/c.png", "in/raw/d.png", "in/e.png"]
    made = folder(**dict.fromkeys(names, png))
    rules = FolderRules(("*_small.*", "raw/"))
    found = read(made, folders=rules)
    assert found.ids == ["a.png", "in/e.png"]
    assert "3 excluded" in found.notes[PASSED_OVER]
    assert read(made, folders=FolderRules(("in/*",))).ids == ["a.png", "b_small.png", "raw/c.png"]


def test_names_that_are_no_utf_8_are_ids_all_the_same(read, folder, picture):
    root = folder(**{"a.png": picture()})
    name = os.path.join(os.fsencode(root), b"caf\xe9 50%.png")
    with open(name, "wb") as file:
        file.write(picture())
    found = read(root)
    assert found.ids == ["a.png", "caf%E9 50%.png"]
    assert found.attributes("caf%E9 50%.png")["path"] == "caf%E9 50%.png"


@contextmanager
def calls_at_most(depth: int):
    """Let calls be so much deeper than here, which is quicker than folders 1000 deep."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def test_folders_may_be_deeper_than_calls(read, folder, picture):
    bottom, hidden = "a/" * 150 + "1.png", ".hidden/" * 150 + "2.png"
    root = folder(**{bottom: picture(), hidden: picture(), "b.png": picture()})
    with calls_at_most(150):
        found = read(root)
    assert (found.ids, found.refused) == (["b.png", bottom], [])
    assert "1 hidden" in found.notes[PASSED_OVER]
