"""Reads MATLAB files of version 5 with SciPy."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import scipy.io

_TRY = (
    "import io, sys, scipy.io; scipy.io.loadmat(sys.argv[1] if sys.argv[1:] else io.BytesIO(sys.stdin.buffer.read()))"
)


def read_mat(source: Path | bytes, **options: Any) -> dict[str, Any]:
    """Reads a MATLAB file, or its content, with SciPy's `loadmat`.

    A separate process reads it first, because SciPy's compiled reader can crash on a damaged file.

    Args:
        source: a path, or the content of a file.
        options: keyword arguments of `loadmat`.

    Raises:
        Exception: the file is damaged or has another format. SciPy raises many types of errors.
    """
    words, content = ([str(source)], None) if isinstance(source, Path) else ([], source)
    tried = subprocess.run(
        [sys.executable, "-c", _TRY, *words], input=content, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if tried.returncode < 0:
        raise ValueError("SciPy's reader crashes on it")
    return scipy.io.loadmat(source if isinstance(source, Path) else io.BytesIO(source), **options)
