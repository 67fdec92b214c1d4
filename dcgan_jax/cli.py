"""The command `dcgan-jax`: parses, calls the package, prints one line where something is wrong."""

import argparse
import dataclasses
import sys
import traceback
import types
import typing
import warnings
from pathlib import Path

import jax

from dcgan_jax import (
    cards,
    comparison,
    data,
    demo,
    distributed,
    evaluation,
    masks,
    methods,
    remote,
    reports,
    samples,
    trainer,
)
from dcgan_jax.baselines import context_encoder
from dcgan_jax.baselines.context_encoder import ContextEncoderConfig
from dcgan_jax.config import DATASETS, Config, InpaintConfig, ModelConfig, RunConfig, TrainConfig
from dcgan_jax.encoder import EncoderConfig
from dcgan_jax.errors import DivergedError, Preempted, UserError
from dcgan_jax.folder import inpaint_folder
from dcgan_jax.photographs import CROPS
from dcgan_jax.prior import COMPUTE_DTYPES, load_prior, with_compute_dtype


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0; 1 if an image failed; 2 for wrong input; 3 for divergence; 75 where SIGTERM stopped a training run that the same
    command goes on with.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"dcgan-jax: {message}\n"
    try:
        status = options.command(options)
    except (UserError, DivergedError, Preempted) as error:
        print(f"dcgan-jax: {error}", file=sys.stderr)
        status = error.exit_status
    except OSError as error:
        print(f"dcgan-jax: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("dcgan-jax: interrupted", file=sys.stderr)
        status = 130
    except Exception:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        status = 70  # EX_SOFTWARE of sysexits.h
    return distributed.leave(status)


def _prepare(options: argparse.Namespace) -> int:
    """From a source of images to a prepared set."""
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
    print(f"{options.out}: {splits}" + (f"; {skipped} unreadable, see its manifest.json" if skipped else ""))
    return 0


def _train(options: argparse.Namespace) -> int:
    """Trains, or goes on with the run in the folder; `tensorboard --logdir RUN` shows it meanwhile."""
    if options.preset is None and options.dataset is not None:
        raise UserError("`dataset` goes with a preset: give --preset he2018 too")
    base = TrainConfig() if options.preset is None else TrainConfig.preset(options.preset, options.dataset)
    if options.verify:
        data.verify(options.data)
    model = dataclasses.replace(base.model, **_given(ModelConfig, options))
    if options.conditional:
        classes = data.open_prepared(options.data).manifest["class_names"]
        if len(classes) < 2:
            raise UserError(f"{options.data} has labels of {len(classes)} classes; `conditional` takes 2 or more")
        model = dataclasses.replace(model, num_classes=len(classes))
    config = dataclasses.replace(base, model=model, **_given(TrainConfig, options))
    window = None if options.profile_steps is None else reports.parse_window(options.profile_steps)
    return _run(config, options, window)


def _train_context_encoder(options: argparse.Namespace) -> int:
    """Trains a context encoder (Pathak et al. 2016), which `evaluate` compares with; a run in the folder is resumed."""
    return _run(ContextEncoderConfig(**_given(ContextEncoderConfig, options)), options, None)


def _train_encoder(options: argparse.Namespace) -> int:
    """Trains an encoder for a prior, from which a search may start; the run is a prior with the encoder in it."""
    given = _given(EncoderConfig, options)
    prior = load_prior(given.get("prior", EncoderConfig.prior))
    assert prior.model is not None  # `load_prior` loads DCGANs
    return _run(EncoderConfig(model=prior.model, **given), options, None)


def _run(config: RunConfig, options: argparse.Namespace, window: range | None) -> int:
    distributed.join(training=True)
    trainer.train(
        config, options.data, options.run, split=options.split, profile_steps=window, progress=not options.quiet
    )
    return 0


def _plot(options: argparse.Namespace) -> int:
    """Draws a run's losses from its metrics.jsonl."""
    print(reports.plot(options.run))
    return 0


def _sample(options: argparse.Namespace) -> int:
    """Writes generated images: a grid, one array, or a file each."""
    _check_counts(options)
    samples.check_place(options.out)
    samples.save_samples(
        load_prior(options.prior),
        options.out,
        options.count,
        seed=options.seed,
        progress=not options.quiet,
        label=options.label,
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    """Saves a run's prior as one file, with a model card beside it."""
    cards.export(options.run, options.out, half=options.half)
    print(f"{options.out}, {options.out.with_suffix('.md')}")
    return 0


def _inpaint(options: argparse.Namespace) -> int:
    """Completes images from disk."""
    _check_counts(options)
    distributed.join(training=False)
    report = inpaint_folder(
        with_compute_dtype(load_prior(options.prior), options.compute_dtype),
        Path(remote.fetch(options.images)),
        str(remote.fetch(options.masks)),
        options.out,
        _search(options),
        crop=options.crop,
        complete=options.complete,
        gif=options.gif,
        label=options.label,
        split=options.split,
        count=options.count,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    where = options.out / ("results.jsonl" if jax.process_count() == 1 else "results-*.jsonl")
    if report.before:
        left = f"completed before and left as they are: {report.before} (give another folder to do them again)"
        print(f"dcgan-jax: {left}", file=sys.stderr)
    _say([f"{name}: {note}" for name, note in report.notes.items()], where)
    _say([f"{name} is skipped: {reason}" for name, reason in report.skipped.items()], where)
    return _report_failed(report.not_finite, where) or int(bool(report.skipped))


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
    lines = evaluation.evaluate(
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
        print(comparison.save(lines, sets, settings, options.out), end="")
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


def _demo(options: argparse.Namespace) -> int:
    """The whole path on the digits that come with scikit-learn."""
    return demo.demo(options.out, progress=not options.quiet)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcgan-jax",
        description="Semantic image inpainting by a generative prior (Yeh et al. 2017), in JAX.",
        epilog="Sources, prepared sets, runs, priors, images and masks may lie in buckets: gs://, s3:// and others.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function):
        sub = commands.add_parser(
            name, help=function.__doc__, description=function.__doc__, argument_default=argparse.SUPPRESS
        )
        sub.set_defaults(command=function)
        sub.add_argument("--quiet", action="store_true", default=False, help="no progress bar")
        return sub

    sub = command("prepare", _prepare)
    sub.add_argument("source", type=_place, help="folder, archive or official files; tfds:NAME; digits")
    sub.add_argument("--out", type=_place, required=True, help="folder of the prepared set, new")
    sub.add_argument("--kind", default=None, choices=data.KINDS, help="detected if not given")
    sub.add_argument("--image-size", type=int, default=64, help="side in pixels (64)")
    sub.add_argument("--channels", type=int, default=None, choices=(1, 3), help="by default 3, for the digits 1")
    sub.add_argument("--crop", default=None, help=f"{', '.join(data.CROPS)}; by default what suits the kind")
    sub.add_argument("--partition", type=_place, default=None, help="CelebA's list_eval_partition.txt, if elsewhere")
    sub.add_argument("--attributes", type=_place, default=None, help="CelebA's list_attr_celeba.txt, if elsewhere")
    sub.add_argument("--data-dir", default=None, help="folder or bucket of the sets of tensorflow-datasets")
    condition = "only images with label=1, label=1,2 or Smiling=1 (CelebA's attributes); given again: both hold"
    sub.add_argument("--where", action="append", default=[], metavar="NAME=VALUE", help=condition)
    fraction = "held out where the source has no splits (0.05)"
    sub.add_argument("--validation-fraction", type=float, default=0.05, help=fraction)

    sub = command("train", _train)
    _add_run(sub)
    sub.add_argument("--verify", action="store_true", default=False, help="check the set's checksum first")
    sub.add_argument(
        "--preset", default=None, help="radford2016, he2018, yeh2017 or modern; options override it field by field"
    )
    sub.add_argument("--dataset", default=None, choices=DATASETS, help="for he2018, whose batch and rate go by the set")
    conditional = "one model for all the set's classes, of which each is known by its number: --num-classes, counted"
    sub.add_argument("--conditional", action="store_true", default=False, help=conditional)
    trace = "trace the steps from FIRST to END, such as 20:30, into the run's folder `profile`"
    sub.add_argument("--profile-steps", default=None, metavar="FIRST:END", help=trace)
    _add_fields(sub, ModelConfig)
    _add_fields(sub, TrainConfig)

    sub = command("train-context-encoder", _train_context_encoder)
    _add_run(sub)
    _add_fields(sub, ContextEncoderConfig)

    sub = command("train-encoder", _train_encoder)
    _add_run(sub)
    _add_fields(sub, EncoderConfig)

    sub = command("plot", _plot)
    sub.add_argument("run", type=_local, help="a run's folder; the picture goes into it as losses.png")

    sub = command("sample", _sample)
    _add_prior(sub)
    sub.add_argument(
        "--out", type=_local, required=True, help="a .png (a grid), a .npz (one array) or a folder (a PNG each)"
    )
    sub.add_argument("--count", type=int, default=None, help="how many images (64, or eight a class in a grid)")
    _add_label(sub, "any, in a grid a row a class")
    sub.add_argument("--seed", type=int, default=0, help="of the latents (0)")

    sub = command("export", _export)
    sub.add_argument("--run", type=_place, required=True, help="a run's folder")
    sub.add_argument("--out", type=_local, required=True, help="a .safetensors file; the card is its name in .md")
    sub.add_argument("--half", action="store_true", default=False, help="kernels in float16, half the size")

    sub = command("inpaint", _inpaint)
    _add_prior(sub)
    sub.add_argument("--images", type=_place, required=True, help="folder, file or prepared set")
    sub.add_argument("--masks", required=True, help="folder or file (white = missing), center, half, random or pattern")
    sub.add_argument("--out", type=_local, required=True, help="folder of the results")
    sub.add_argument("--split", default=None, help="of a prepared set; all of it if not given")
    suits = "by default what suits the prior"
    sub.add_argument("--crop", default=None, help=f"{', '.join(CROPS)}, or LEFT,TOP,WIDTH,HEIGHT in pixels; {suits}")
    sub.add_argument("--gif", action="store_true", default=False, help="show the searches' course in gifs/")
    sub.add_argument(
        "--complete", action="store_true", default=False, help="the originals lie in the holes: score against them"
    )
    _add_label(sub, "the searches find it")
    _add_search(sub)

    sub = command("evaluate", _evaluate)
    each = "one for each set, or one for all"
    sub.add_argument("--data", nargs="+", type=_place, required=True, help="prepared sets")
    sub.add_argument("--prior", nargs="+", default=["faces-64"], help=f"as of `inpaint`; {each} (faces-64)")
    encoders = f"runs of train-context-encoder, files, or names in the package; {each}"
    sub.add_argument("--context-encoder", nargs="+", default=None, help=encoders)
    sub.add_argument("--split", nargs="+", default=None, help=f"held-out images; {each} (validation, else test)")
    sub.add_argument("--training-split", default="train", help="among which `nearest` looks (train)")
    sub.add_argument("--masks", nargs="+", default=masks.NAMES, help="which masks (all four)")
    which = f"any of {', '.join(methods.NAMES)}, or all; NAME:COUNT gives it fewer or more images than --count (search)"
    sub.add_argument("--methods", nargs="+", default=[methods.SEARCH], metavar="METHOD", help=which)
    sub.add_argument("--out", type=_local, required=True, help="folder of the tables and figures")
    _add_search(sub)

    sub = command("demo", _demo)
    sub.add_argument("--out", type=_local, default=Path("demo"), help="folder of everything it makes (demo)")
    return parser


def _place(text: str) -> str | Path:
    """A local path, or the address of a bucket, which a `Path` would spoil."""
    return text if remote.is_url(text) else Path(text)


def _local(text: str) -> Path:
    if remote.is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is not here: give a local path and copy it from there")
    return Path(text)


def _add_run(parser):
    parser.add_argument("--data", type=_place, required=True, help="a prepared set")
    parser.add_argument("--run", type=_place, required=True, help="the run's folder; a run in it is resumed")
    parser.add_argument("--split", default="train", help="which images of the set (train)")


def _add_prior(parser):
    parser.add_argument(
        "--prior", default="faces-64", help="a run's folder, a .safetensors file, or a name in the package (faces-64)"
    )


def _add_label(parser, default):
    text = f"the class of all images, of a conditional prior, by its number from 0 on ({default})"
    parser.add_argument("--label", type=int, default=None, help=text)


def _add_search(parser):
    parser.add_argument("--count", type=int, default=None, help="the first so many images; all if not given")
    parser.add_argument("--seed", type=int, default=0, help="of holes and searches (0)")
    parser.add_argument("--batch-size", type=int, default=64, help="searches at a time (64)")
    parser.add_argument(
        "--compute-dtype", default="float32", choices=COMPUTE_DTYPES, help="the networks' arithmetic (float32)"
    )
    presets = "fast, best, several (the prior needs an encoder), yeh2017 or he2018; options override it field by field"
    parser.add_argument("--preset", default=None, help=presets)
    _add_fields(parser, InpaintConfig)


def _say(lines: list[str], where: Path, most: int = 10) -> None:
    for line in lines[:most]:
        print(f"dcgan-jax: {line}", file=sys.stderr)
    if len(lines) > most:
        print(f"dcgan-jax: and {len(lines) - most} more such images, see {where}", file=sys.stderr)


def _report_failed(failed: int, where: Path) -> int:
    """Says how many searches failed, and returns the exit status."""
    if failed:
        print(f"dcgan-jax: {failed} searches were not finite, see {where}", file=sys.stderr)
    return 1 if failed else 0


def _check_counts(options: argparse.Namespace) -> None:
    if not 0 <= options.seed < 2**63:
        raise UserError(f"`seed` is {options.seed}; it takes 0 to 2**63 - 1")
    for name in ("count", "batch_size"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f"`{name}` is {value}; it takes 1 or more")


def _search(options):
    base = InpaintConfig() if options.preset is None else InpaintConfig.preset(options.preset)
    return dataclasses.replace(base, **_given(InpaintConfig, options))


def _add_fields(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """An option for each field; absent ones leave no trace, so that a preset shows through."""
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        name, kind = "--" + field.name.replace("_", "-"), field.type
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        text = f"{field.metadata['help']} ({field.default})"
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS)
        else:
            parser.add_argument(name, type=kind, choices=field.metadata["choices"], help=text)


def _given(config: type[Config], options: argparse.Namespace) -> dict:
    names = {field.name for field in dataclasses.fields(config) if "help" in field.metadata}
    return {name: value for name, value in vars(options).items() if name in names}
