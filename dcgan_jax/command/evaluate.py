"""The command `evaluate`."""

import argparse
from typing import Any

from dcgan_jax import data
from dcgan_jax.baselines import context_encoder
from dcgan_jax.command.options import check_counts, search_config
from dcgan_jax.command.results import report_failed
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation import tables
from dcgan_jax.evaluation.evaluate import evaluate
from dcgan_jax.evaluation.holes import image_name
from dcgan_jax.evaluation.methods import METHODS, ImageSet
from dcgan_jax.parallel import distributed
from dcgan_jax.priors.dcgan import with_compute_dtype
from dcgan_jax.priors.files import load_prior


def run(options: argparse.Namespace) -> int:
    """Compares methods on held-out images and prints the tables."""
    check_counts(options)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out} is not a folder: give another one as `out`")
    search, counts = search_config(options), _method_counts(options)
    distributed.join(training=False)
    sets = _sets(options, searching=any(name in METHODS and METHODS[name].is_search for name in counts))
    if any(one.prior is None or one.prior.encode is None for one in sets):
        # "all" leaves out the methods that these priors do not support. A method given by name raises an error.
        named = {text.partition(":")[0] for text in options.methods}
        counts = {name: count for name, count in counts.items() if name in named or not METHODS[name].needs_encoder}
    lines = evaluate(
        sets,
        counts,
        options.out,
        mask_names=tuple(dict.fromkeys(options.masks)),
        count=options.count,
        search=search,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    if distributed.is_first():
        settings = {"seed": options.seed, "search": search.to_json()}
        print(tables.save(lines, sets, settings, options.out), end="")
    failed = sum(line.get("status") == "not finite" for line in lines)
    return report_failed(failed, options.out / "scores.csv")


def _method_counts(options: argparse.Namespace) -> dict[str, int | None]:
    """Parses NAME, NAME:COUNT and "all". Returns method -> number of images; None stands for `--count`."""
    counts: dict[str, int | None] = {}
    possible = [name for name, entry in METHODS.items() if options.context_encoder or not entry.needs_context_encoder]
    for text in options.methods:
        name, _, count = text.partition(":")
        if count and not (count.isascii() and count.isdigit() and int(count)):
            raise UserError(f"`methods` has {text!r}; give a number of images after the colon, 1 or more")
        for one in possible if name == "all" else [name]:
            counts[one] = int(count) if count else None
    return counts


def _sets(options: argparse.Namespace, searching: bool) -> list[ImageSet]:
    """Opens the sets with their priors, context encoders and splits. All four options are in the same order."""
    sets = []
    names = ("prior", "context_encoder", "split")
    each = [_for_each(name, getattr(options, name), len(options.data)) for name in names]
    for place, prior, encoder, split in zip(options.data, *each, strict=True):
        prepared = data.open_prepared(place)
        splits = prepared.manifest["splits"]
        if split is None:
            split = "test" if "test" in splits and "validation" not in splits else "validation"
        training = prepared.split(options.training_split) if options.training_split in splits else prepared.images[:0]
        sets.append(
            ImageSet(
                name=str(place).rstrip("/").rpartition("/")[2],
                kind=prepared.manifest.get("kind"),
                images=prepared.split(split),
                training=training,
                version=f"{prepared.manifest['sha256']} {split} {options.training_split}",
                prior=with_compute_dtype(load_prior(prior), options.compute_dtype) if searching else None,
                encoder=None if encoder is None else context_encoder.load(encoder),
                names=[image_name(name) for name in prepared.names[prepared.split_slice(split)]],
            )
        )
    return sets


def _for_each(name: str, values: list[Any] | None, count: int) -> list[Any]:
    """Returns one value for each set."""
    values = values or [None]
    if len(values) not in (1, count):
        raise UserError(f"`{name}` has {len(values)} values for {count} sets: give one for each, or one for all")
    return values * count if len(values) == 1 else values
