"""Small files in the official formats of CelebA, SVHN and Stanford Cars."""

import io
from pathlib import Path

import numpy as np
import scipy.io
from pictures import encode, photo, write_tar, write_tree
from PIL import Image


def write_svhn(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
    labels = np.arange(1, count + 1).reshape(count, 1) % 10
    labels[labels == 0] = 10  # the official files write 10 for the digit 0
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, {"X": pixels, "y": labels.astype(np.uint8)}, do_compression=True)
    return pixels, labels


def prepared_pixels(image: Image.Image, box: tuple[int, int, int, int] | None = None, size: int = 64) -> np.ndarray:
    """A box of an image (left, top, right, bottom), cropped and resized by Pillow alone."""
    cropped = image if box is None else image.crop(box)
    return np.asarray(cropped.resize((size, size), Image.Resampling.LANCZOS))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# Stanford Cars

CLASSES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TTS Coupe 2012"]
# File name: annotated box (x1, y1, x2, y2, from 1, last pixel included) and class, from 1.
CARS = {
    "train": {"00001.jpg": ((11, 6, 70, 45), 3), "00002.jpg": ((1, 1, 96, 64), 1), "00003.jpg": ((30, 20, 99, 66), 3)},
    "test": {"00001.jpg": ((2, 3, 50, 60), 2)},
}


def annotations(entries: dict, labelled: bool = True) -> bytes:
    """The annotations as a struct array, laid out as in the development kit."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if labelled else []), "fname"]
    array = np.zeros((1, len(entries)), [(field, object) for field in fields])
    for i, (name, (box, label)) in enumerate(entries.items()):
        array[0, i] = (*map(float, box), *([float(label)] if labelled else []), name)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"annotations": array})
    return stream.getvalue()


def class_names() -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"class_names": np.array([CLASSES], object)})
    return stream.getvalue()


def car_photos(split: str) -> dict[str, bytes]:
    names = [f"cars_{split}/{name}" for name in CARS[split]]
    return {name: encode(photo(i + len(split), 96, 64), "JPEG", quality=95) for i, name in enumerate(names)}


def write_cars(root: Path, form: str) -> Path:
    """Writes the official files: `folders`, `archives`, or archives with the kit's .mat files `beside` them."""
    kit = {"cars_train_annos.mat": annotations(CARS["train"]), "cars_meta.mat": class_names()}
    kit["cars_test_annos.mat"] = annotations(CARS["test"], labelled=False)
    test = {"cars_test_annos_withlabels.mat": annotations(CARS["test"])}
    root.mkdir()
    if form == "folders":
        write_tree(root, {f"devkit/{name}": data for name, data in kit.items()} | test)
        write_tree(root, car_photos("train") | car_photos("test"))
    else:
        for split in CARS:
            write_tar(root / f"cars_{split}.tgz", car_photos(split), "w:gz")
        if form == "archives":
            write_tar(root / "car_devkit.tgz", {f"devkit/{name}": data for name, data in kit.items()}, "w:gz")
            write_tree(root, test)
        else:
            write_tree(root, kit | test)
    return root


# CelebA's attributes

ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Smiling"]
FACES = {"000001.jpg": (0, 1, 1), "000002.jpg": (0, 0, 1), "000003.jpg": (1, 1, 0), "000004.jpg": (0, 1, 1)}


def attribute_list(faces: dict[str, tuple[int, ...]]) -> str:
    rows = [f"{name} {' '.join(f'{2 * bit - 1:2d}' for bit in bits)}\n" for name, bits in faces.items()]
    return f"{len(faces)}\n{' '.join(ATTRIBUTES)} \n" + "".join(rows)
