"""The command `prepare`."""

import argparse

from dcgan_jax import data


def run(options: argparse.Namespace) -> int:
    """Prepares a set and prints the sizes of its splits."""
    prepared = data.prepare(
        options.source,
        options.out,
        kind=options.kind,
        image_size=options.image_size,
        channels=options.channels,
        crop=options.crop,
        validation_fraction=options.validation_fraction,
        where=options.where,
        partition=options.partition,
        attributes=options.attributes,
        data_dir=options.data_dir,
        progress=not options.quiet,
    )
    splits = ", ".join(f"{stop - start} {name}" for name, (start, stop) in prepared.manifest["splits"].items())
    skipped = len(prepared.manifest["unreadable"])
    print(f"{options.out}: {splits}" + (f"; {skipped} unreadable files, see its manifest.json" if skipped else ""))
    return 0
