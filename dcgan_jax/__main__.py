"""`python -m dcgan_jax`."""

from dcgan_jax.command.main import run

if __name__ == "__main__":
    run()
