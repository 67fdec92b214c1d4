"""The commands that train, and `plot`, which draws the losses of a run."""

import argparse
import dataclasses

from dcgan_jax import data
from dcgan_jax.baselines import context_encoder_training
from dcgan_jax.baselines.config import ContextEncoderConfig
from dcgan_jax.command.options import given_fields, parse_window
from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.parallel import distributed
from dcgan_jax.priors.files import load_prior
from dcgan_jax.training import encoder, gan, loop, plot
from dcgan_jax.training.config import EncoderConfig, RunConfig, TrainConfig
from dcgan_jax.training.recipe import Recipe


def run_gan(options: argparse.Namespace) -> int:
    """Trains a prior."""
    if options.preset is None and options.dataset is not None:
        raise UserError("`dataset` goes with a preset: give --preset he2018 too")
    base = TrainConfig() if options.preset is None else TrainConfig.preset(options.preset, options.dataset)
    if options.verify:
        data.verify(options.data)
    model = dataclasses.replace(base.model, **given_fields(ModelConfig, options))
    if options.conditional:
        classes = data.open_prepared(options.data).manifest["class_names"]
        if len(classes) < 2:
            raise UserError(f"{options.data} has {len(classes)} classes; `conditional` takes a set of 2 or more")
        model = dataclasses.replace(model, num_classes=len(classes))
    config = dataclasses.replace(base, model=model, **given_fields(TrainConfig, options))
    window = None if options.profile_steps is None else parse_window(options.profile_steps)
    return _train(gan.RECIPE, config, options, window)


def run_context_encoder(options: argparse.Namespace) -> int:
    """Trains a context encoder."""
    config = ContextEncoderConfig(**given_fields(ContextEncoderConfig, options))
    return _train(context_encoder_training.RECIPE, config, options)


def run_encoder(options: argparse.Namespace) -> int:
    """Trains an encoder for a prior."""
    given = given_fields(EncoderConfig, options)
    name = given.get("prior", EncoderConfig.prior)
    prior = load_prior(name)
    if prior.model is None:
        raise UserError(f"the prior {name} is not a DCGAN: give the prior of a run of `dcgan-jax train`")
    if prior.discriminate is None:
        raise UserError(f"the prior {name} has no discriminator, which the encoder's run keeps: give a prior with one")
    return _train(encoder.RECIPE, EncoderConfig(model=prior.model, **given), options)


def run_plot(options: argparse.Namespace) -> int:
    """Draws the losses of a run and prints the name of the picture."""
    print(plot.plot(options.run))
    return 0


def _train(recipe: Recipe, config: RunConfig, options: argparse.Namespace, window: range | None = None) -> int:
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
    if distributed.is_first():
        print(f"{options.run}: all {config.num_steps} steps are done")
    return 0
