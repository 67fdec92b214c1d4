"""Small pictures, and folders and archives of them."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from dcgan_jax.data import prepare


def photo(seed: int, width: int, height: int) -> Image.Image:
    """A smooth random image, which JPEG changes little and which shows a shift of one pixel."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def smooth_images(n: int, side: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random images [n, side, side, channels] in uint8 that vary over some 5 pixels."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(n, side, side, channels)), (0, 2, 2, 0))
    return np.clip(128 + 300 * smooth, 0, 255).astype(np.uint8)


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def pictures(*names: str, width: int = 20, height: int = 20) -> dict[str, bytes]:
    return {name: encode(photo(i, width, height)) for i, name in enumerate(names)}


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def quiet(source, out, **options):
    return prepare(source, out, progress=False, **options)
