"""`python -m dcgan_jax`."""

import sys

from dcgan_jax.command.main import main

if __name__ == "__main__":
    sys.exit(main())
