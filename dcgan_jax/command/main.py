"""The command `dcgan-jax`: parses, calls the package, prints one line where something is wrong."""

import argparse
import dataclasses
import sys
import traceback
import warnings
from pathlib import Path

import jax

from dcgan_jax import data, masks
from dcgan_jax.baselines import context_encoder_training
from dcgan_jax.baselines.config import ContextEncoderConfig
from dcgan_jax.command import demo, export, sample
from dcgan_jax.command import options as options_module
from dcgan_jax.command.evaluate import _evaluate, _report_failed
from dcgan_jax.command.inpaint import inpaint_folder
from dcgan_jax.command.options import (
    _add_fields,
    _add_label,
    _add_prior,
    _add_run,
    _add_search,
    _check_counts,
    _given,
    _local,
    _place,
    _search,
)
from dcgan_jax.errors import DivergedError, Preempted, UserError
from dcgan_jax.evaluation import methods
from dcgan_jax.inpainting.region import CROPS
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.parallel import distributed
from dcgan_jax.priors.dcgan import with_compute_dtype
from dcgan_jax.priors.files import load_prior
from dcgan_jax.storage import remote
from dcgan_jax.training import encoder, gan, loop, plot
from dcgan_jax.training.config import DATASETS, EncoderConfig, RunConfig, TrainConfig
from dcgan_jax.training.recipe import Recipe


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
    window = None if options.profile_steps is None else options_module.parse_window(options.profile_steps)
    return _run(gan.RECIPE, config, options, window)


def _train_context_encoder(options: argparse.Namespace) -> int:
    """Trains a context encoder (Pathak et al. 2016), which `evaluate` compares with; a run in the folder is resumed."""
    return _run(
        context_encoder_training.RECIPE, ContextEncoderConfig(**_given(ContextEncoderConfig, options)), options, None
    )


def _train_encoder(options: argparse.Namespace) -> int:
    """Trains an encoder for a prior, from which a search may start; the run is a prior with the encoder in it."""
    given = _given(EncoderConfig, options)
    prior = load_prior(given.get("prior", EncoderConfig.prior))
    assert prior.model is not None  # `load_prior` loads DCGANs
    return _run(encoder.RECIPE, EncoderConfig(model=prior.model, **given), options, None)


def _run(recipe: Recipe, config: RunConfig, options: argparse.Namespace, window: range | None) -> int:
    distributed.join(training=True)
    loop.train(
        recipe,
        config,
        options.data,
        options.run,
        split=options.split,
        profile_steps=window,
        progress=not options.quiet,
    )
    return 0


def _plot(options: argparse.Namespace) -> int:
    """Draws a run's losses from its metrics.jsonl."""
    print(plot.plot(options.run))
    return 0


def _sample(options: argparse.Namespace) -> int:
    """Writes generated images: a grid, one array, or a file each."""
    _check_counts(options)
    sample.check_place(options.out)
    sample.save_samples(
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
    export.export(options.run, options.out, half=options.half)
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


def _say(lines: list[str], where: Path, most: int = 10) -> None:
    for line in lines[:most]:
        print(f"dcgan-jax: {line}", file=sys.stderr)
    if len(lines) > most:
        print(f"dcgan-jax: and {len(lines) - most} more such images, see {where}", file=sys.stderr)
