"""The command `evaluate`."""

import argparse
import sys
from pathlib import Path

from dcgan_jax import data
from dcgan_jax.baselines import context_encoder
from dcgan_jax.command.options import _check_counts, _search
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation import evaluate, methods, tables
from dcgan_jax.parallel import distributed
from dcgan_jax.priors.dcgan import with_compute_dtype
from dcgan_jax.priors.files import load_prior


def _evaluate(options: argparse.Namespace) -> int:
    """Compares searches and baselines on held-out images: tables, figures; goes on where it stopped."""
    _check_counts(options)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out} is not a folder: give another one as `out`")
    search, counts = _search(options), _method_counts(options)
    distributed.join(training=False)
    sets = _sets(options, searching=any(map(methods.is_search, counts)))
    if any(one.prior is None or one.prior.encode is None for one in sets):
        named = {text.partition(":")[0] for text in options.methods}
        counts = {name: count for name, count in counts.items() if name in named or name not in methods.GUIDED}
    lines = evaluate.evaluate(
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
    return _report_failed(failed, options.out / "scores.csv")


def _method_counts(options: argparse.Namespace) -> dict[str, int | None]:
    """Names of methods and how many images each is given, from NAME or NAME:COUNT; "all" is every one there is."""
    names = {}
    for text in options.methods:
        name, _, count = text.partition(":")
        if count and not (count.isascii() and count.isdigit() and int(count)):
            raise UserError(f"`methods` has {text!r}; after the colon it takes a number of images, 1 or more")
        several = [known for known in methods.NAMES if known != methods.CONTEXT_ENCODER or options.context_encoder]
        for one in several if name == "all" else [name]:
            names[one] = int(count) if count else None
    return names


def _sets(options: argparse.Namespace, searching: bool) -> list[methods.ImageSet]:
    """The sets with their priors and context encoders, which are given in the same order."""
    each = []
    for name in ("prior", "context_encoder", "split"):
        values = getattr(options, name) or [None]
        if len(values) not in (1, len(options.data)):
            sets = f"{len(options.data)} sets"
            raise UserError(f"`{name}` has {len(values)} values for {sets}: give one for each, or one for all")
        each.append(values * len(options.data) if len(values) == 1 else values)
    sets = []
    for place, prior, encoder, split in zip(options.data, *each, strict=True):
        prepared = data.open_prepared(place)
        splits = prepared.manifest["splits"]
        if split is None:
            split = "test" if "test" in splits and "validation" not in splits else "validation"
        training = prepared.split(options.training_split) if options.training_split in splits else prepared.images[:0]
        sets.append(
            methods.ImageSet(
                name=str(place).rstrip("/").rpartition("/")[2],
                kind=prepared.manifest.get("kind"),
                images=prepared.split(split),
                training=training,
                identity=f"{prepared.manifest['sha256']} {split} {options.training_split}",
                prior=with_compute_dtype(load_prior(prior), options.compute_dtype) if searching else None,
                encoder=None if encoder is None else context_encoder.load(encoder),
            )
        )
    return sets


def _report_failed(failed: int, where: Path) -> int:
    """Says how many searches failed, and returns the exit status."""
    if failed:
        print(f"dcgan-jax: {failed} searches were not finite, see {where}", file=sys.stderr)
    return 1 if failed else 0
