"""MATLAB's files of version 5, read by SciPy."""

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
    """SciPy's `loadmat`, of a file or its content.

    A process of its own reads it first: a damaged file can end the one that reads it (SciPy's reader is compiled).

    Raises:
        Exception: SciPy raises nearly anything on a file of another format.
    """
    words, content = ([str(source)], None) if isinstance(source, Path) else ([], source)
    tried = subprocess.run(
        [sys.executable, "-c", _TRY, *words], input=content, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if tried.returncode < 0:
        raise ValueError("SciPy's reader crashes on it")
    return scipy.io.loadmat(source if isinstance(source, Path) else io.BytesIO(source), **options)
