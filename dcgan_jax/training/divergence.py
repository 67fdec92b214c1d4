"""Detects losses and states that are not finite."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dcgan_jax.errors import DivergedError
from dcgan_jax.training.recipe import Metrics


def fetch_metrics(metrics: Metrics, step: int, saved: int | None) -> dict[str, float]:
    """Copies the metrics of a step to the host. Waits until the step is done.

    Args:
        metrics: the metrics of the step.
        step: the number of steps done.
        saved: the step of the last checkpoint, for the message; None if there is none.

    Raises:
        DivergedError: a metric is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    _refuse({name: math.isfinite(value) for name, value in values.items()}, step, saved)
    return {name: round(value, 6) for name, value in values.items()}


def check_state(state: Any, step: int, saved: int | None) -> None:
    """Checks a state before it is saved. Weights may overflow although the losses of all steps are finite.

    Raises:
        DivergedError: a part of it is not finite.
    """
    _refuse(_finite(state._asdict()), step, saved)


@jax.jit
def _finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    """Tells for each part whether all its arrays are finite."""
    return {
        name: jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(part)]))
        for name, part in parts.items()
    }


def _refuse(finite: Mapping[str, bool | jax.Array], step: int, saved: int | None) -> None:
    bad = [name for name, good in finite.items() if not good]
    if bad:
        checkpoint = "there is no earlier checkpoint" if saved is None else f"the last checkpoint is of step {saved}"
        raise DivergedError(f"{bad[0]} is not finite at step {step}; {checkpoint}")
