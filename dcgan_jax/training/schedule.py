"""The steps after which a training run reports, samples, measures and saves."""

from typing import NamedTuple

from dcgan_jax.training.config import RunConfig


class Due(NamedTuple):
    """The actions that are due after a step."""

    log: bool  # a line of metrics
    sample: bool  # a picture
    measure: bool  # the measures
    save: bool  # a checkpoint


def due(config: RunConfig, step: int, stopping: bool) -> Due:
    """Returns the actions that are due after `step` steps.

    After the last step, log, sample and save are all due. A run that is `stopping` is saved.
    """
    last = step == config.num_steps
    return Due(
        log=last or step % config.log_every == 0,
        sample=last or step % config.sample_every == 0,
        measure=config.is_measured(step),
        save=last or stopping or step % config.checkpoint_every == 0,
    )
