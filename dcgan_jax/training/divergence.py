"""Losses and states that are not finite: how a run finds them."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dcgan_jax.errors import DivergedError
from dcgan_jax.training.recipe import Metrics


def read_metrics(metrics: Metrics, step: int, saved: int | None) -> dict[str, float]:
    """Brings the metrics of a step to the host, and waits for the step.

    Args:
        metrics: of the step.
        step: the number of steps done.
        saved: the step of the last checkpoint, for the message.

    Raises:
        DivergedError: one of them is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    _refuse({name: math.isfinite(value) for name, value in values.items()}, step, saved)
    return {name: round(value, 6) for name, value in values.items()}


def check_state(state: Any, step: int, saved: int | None) -> None:
    """Checks a state before it is saved. Weights may overflow although the losses before them are finite.

    Raises:
        DivergedError: a part of it is not finite.
    """
    _refuse(_finite(state._asdict()), step, saved)


@jax.jit
def _finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    """Whether all arrays of each part are finite."""
    return {
        name: jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(part)]))
        for name, part in parts.items()
    }


def _refuse(finite: Mapping[str, bool | jax.Array], step: int, saved: int | None) -> None:
    bad = [name for name, good in finite.items() if not good]
    if bad:
        checkpoint = "there is no checkpoint before it" if saved is None else f"the last checkpoint is of step {saved}"
        raise DivergedError(f"{bad[0]} is not finite at step {step}; {checkpoint}")
