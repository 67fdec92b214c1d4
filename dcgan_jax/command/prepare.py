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
    counts = {name: len(prepared.manifest.get(name, ())) for name in ("unreadable", "damaged")}
    problems = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print(f"{options.out}: {splits}" + (f"; {problems}, see its manifest.json" if problems else ""))
    return 0
