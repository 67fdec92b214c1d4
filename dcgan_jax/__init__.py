"""Semantic image inpainting by a generative prior, in JAX and Flax.

Each public name is imported when it is first used, so that the command's help appears without JAX. The names and
their modules are listed in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
