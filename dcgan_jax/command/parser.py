"""The options of all commands. Nothing here imports JAX, so `--help` and errors in options appear at once."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from dcgan_jax.baselines.config import ContextEncoderConfig
from dcgan_jax.command.options import (
    add_fields,
    add_label,
    add_prior,
    add_run,
    add_search,
    local_path,
    path_or_url,
)
from dcgan_jax.config import MASK_NAMES, PHOTO_CROPS, SET_CROPS, SOURCE_KINDS
from dcgan_jax.evaluation.methods import METHODS
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training.config import DATASETS, EncoderConfig, TrainConfig


class _Parser(argparse.ArgumentParser):
    """Reports wrong options in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuses unknown options here, so that the message names the help of the subcommand."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"there is no {' '.join(unknown)}")
        return found, unknown


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of `dcgan-jax`.

    The parsed options have the attribute `command`: the function to call, as MODULE:FUNCTION in `dcgan_jax.command`.
    """
    parser = _Parser(
        prog="dcgan-jax",
        description="Semantic image inpainting by a generative prior (Yeh et al. 2017), in JAX.",
        epilog="Sources, prepared sets, runs, priors, images and masks may be in buckets: gs://, s3:// and others.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, argument_default=argparse.SUPPRESS)
        sub.set_defaults(command=function)
        sub.add_argument("--quiet", action="store_true", default=False, help="Show no progress bar.")
        return sub

    _add_prepare(command("prepare", "prepare:run", "Prepare a set of images for training and evaluation."))
    _add_train(
        command(
            "train", "train:run_gan", "Train a prior, or resume a run. `tensorboard --logdir RUN` shows its progress."
        )
    )
    sub = command(
        "train-context-encoder",
        "train:run_context_encoder",
        "Train a context encoder (Pathak et al. 2016), a method of `evaluate`, or resume a run.",
    )
    add_run(sub)
    add_fields(sub, ContextEncoderConfig)
    text = "Train an encoder for a prior. Its guess can start a search. The run holds the prior and its encoder."
    sub = command("train-encoder", "train:run_encoder", text)
    add_run(sub)
    add_fields(sub, EncoderConfig)
    sub = command("plot", "train:run_plot", "Draw the losses of a run.")
    sub.add_argument("run", type=local_path, help="Folder of the run. The picture is written there as losses.png.")
    _add_sample(command("sample", "sample:run", "Write generated images: a grid, an array, or one file per image."))
    _add_export(command("export", "export:run", "Save a prior as one file, or the whole completion as a program."))
    _add_inpaint(command("inpaint", "inpaint:run", "Complete images from disk."))
    _add_evaluate(
        command(
            "evaluate", "evaluate:run", "Compare methods on held-out images, in tables and figures, or resume this."
        )
    )
    sub = command("serve", "serve:run", "Open a page in the browser on which photographs are completed.")
    add_prior(sub)
    sub.add_argument("--host", default="127.0.0.1", help="Address of the page. The default serves this machine alone.")
    sub.add_argument("--port", type=int, default=7860, help="Port of the page (default: 7860); 0 takes a free one.")
    sub = command("demo", "demo:run", "Prepare, train and evaluate on the digits that come with scikit-learn.")
    sub.add_argument("--out", type=local_path, default=Path("demo"), help="Folder of the results (default: demo).")
    return parser


def _add_prepare(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("source", type=path_or_url, help="A folder, an archive, official files, tfds:NAME or digits.")
    add("--out", type=path_or_url, required=True, help="Folder of the prepared set, new or empty.")
    add("--kind", default=None, choices=SOURCE_KINDS, help="Kind of the source (default: detected).")
    add("--image-size", type=int, default=64, help="Side of the images in pixels (default: 64).")
    channels = "1 for grey, 3 for colour (default: 1 for the digits, else 3)."
    add("--channels", type=int, default=None, choices=(1, 3), help=channels)
    add("--crop", default=None, help=f"{', '.join(SET_CROPS)} (default: the published crop of the kind).")
    add(
        "--partition",
        type=path_or_url,
        default=None,
        help="CelebA's list_eval_partition.txt, if not beside the images.",
    )
    add("--attributes", type=path_or_url, default=None, help="CelebA's list_attr_celeba.txt, if not beside the images.")
    add("--data-dir", default=None, help="Folder or bucket of the sets of tensorflow-datasets.")
    condition = "Keep only images that meet a condition: label=1, label=1,2 or Smiling=1. Repeat it for several."
    add("--where", action="append", default=[], metavar="NAME=VALUE", help=condition)
    fraction = "Fraction held out for validation, if the source has only training images (default: 0.05)."
    add("--validation-fraction", type=float, default=0.05, help=fraction)


def _add_train(sub: argparse.ArgumentParser) -> None:
    add_run(sub)
    add = sub.add_argument
    add("--verify", action="store_true", default=False, help="Check the checksum of the set first.")
    presets = "radford2016, he2018, yeh2017 or modern (default: none). Options below override its values."
    add("--preset", default=None, help=presets)
    add("--dataset", default=None, choices=DATASETS, help="Sets batch size and learning rate of the preset he2018.")
    conditional = "Train a class-conditional model. Sets --num-classes to the number of classes in the set."
    add("--conditional", action="store_true", default=False, help=conditional)
    trace = "Profile the steps from FIRST to END, such as 20:30, into the folder `profile` of the run."
    add("--profile-steps", default=None, metavar="FIRST:END", help=trace)
    add_fields(sub, ModelConfig, "without a preset")
    add_fields(sub, TrainConfig, "without a preset")


def _add_sample(sub: argparse.ArgumentParser) -> None:
    add_prior(sub)
    out = "A .png (a grid), a .npz (one array) or a folder (one PNG for each image)."
    sub.add_argument("--out", type=local_path, required=True, help=out)
    count = "Number of images (default: 64; in a grid of a conditional prior, 8 for each class)."
    sub.add_argument("--count", type=int, default=None, help=count)
    add_label(sub, "random; in a grid, one row for each class")
    sub.add_argument("--seed", type=int, default=0, help="Seed of the latents (default: 0).")


def _add_export(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=path_or_url, default=None, help="Folder of the run.")
    text = "With --compiled: folder of a run, a .safetensors file, or the name of a packaged prior."
    source.add_argument("--prior", default=None, help=text)
    out = "A .safetensors file, whose card has the same name with .md. With --compiled, a .jaxexport file."
    add("--out", type=local_path, required=True, help=out)
    add("--half", action="store_true", default=False, help="Store kernels in float16, at half the size.")
    text = "Save the whole completion as a program that JAX runs without this package, on CPUs, NVIDIA GPUs and TPUs."
    add("--compiled", action="store_true", default=False, help=text)
    presets = (
        "With --compiled: fast, best, several, yeh2017 or he2018 (default: the best search that the prior allows)."
    )
    add("--preset", default=None, help=presets)


def _add_inpaint(sub: argparse.ArgumentParser) -> None:
    add_prior(sub)
    add = sub.add_argument
    add("--images", type=path_or_url, required=True, help="Folder, file or prepared set.")
    where = f"Folder or file (white = missing), alpha (transparent = missing), or one of {', '.join(MASK_NAMES)}."
    known = sub.add_mutually_exclusive_group(required=True)
    known.add_argument("--masks", default=None, help=where)
    measure = (
        "Restore whole images from low-resolution:FACTOR, grey, noise:LEVELS (of 255) or grid:STEP, in place of masks. "
        "Images are measured first, unless they have the size of the measured ones. With --score noise is added."
    )
    known.add_argument("--measure", default=None, metavar="KIND", help=measure)
    inverted = "Black pixels of the mask files are missing, instead of white ones."
    add("--invert-masks", action="store_true", default=False, help=inverted)
    add("--out", type=local_path, required=True, help="Folder of the results.")
    add("--split", default=None, help="Split of a prepared set (default: all splits).")
    crop = f"{', '.join(PHOTO_CROPS)}, or LEFT,TOP,WIDTH,HEIGHT in pixels (default: fits the prior's training images)."
    add("--crop", default=None, help=crop)
    elsewhere = "Fill missing pixels outside the region smoothly. Without this option they are an error."
    add("--elsewhere", default=None, choices=("smooth",), help=elsewhere)
    add("--gif", action="store_true", default=False, help="Write an animation of each search to gifs/.")
    score = "Compare results with the original pixels. Results for drawn masks are always compared."
    add("--score", "--complete", action="store_true", default=False, help=score)
    add_label(sub, "found by each search")
    add_search(sub, "best, if the prior has an encoder; else none")


def _add_evaluate(sub: argparse.ArgumentParser) -> None:
    each = "Give one for each set, or one for all"
    add = sub.add_argument
    add("--data", nargs="+", type=path_or_url, required=True, help="Prepared sets.")
    priors = f"Folders of runs, .safetensors files, or names of packaged priors. {each} (default: faces-64)."
    add("--prior", nargs="+", default=["faces-64"], help=priors)
    encoders = f"Runs of train-context-encoder, files, or names of packaged context encoders. {each}."
    add("--context-encoder", nargs="+", default=None, help=encoders)
    split = f"Split of the held-out images. {each} (default: validation, else test)."
    add("--split", nargs="+", default=None, help=split)
    add("--training-split", default="train", help="Split that `nearest` searches (default: train).")
    add("--masks", nargs="+", default=MASK_NAMES, help=f"Any of {', '.join(MASK_NAMES)} (default: all).")
    which = f"Any of {', '.join(METHODS)}, or all (default: search). NAME:COUNT sets a method's number of images."
    add("--methods", nargs="+", default=["search"], metavar="METHOD", help=which)
    add("--out", type=local_path, required=True, help="Folder of the tables and figures.")
    add_search(sub, "none")
