"""The latent search of one image; a batch is its `vmap`.

It has the shape of every iterative method here: `init_search`, `search_step`, `end_search`, and `search`, which is all
three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dcgan_jax.config import InpaintConfig
from dcgan_jax.losses import context_loss, prior_loss
from dcgan_jax.prior import Prior, label_entries, with_label


class Trace(NamedTuple):
    """How a search went: its iterates at the start, after every `trace_every` steps, and at the end.

    Where a search stopped early, its end fills the places that are left.
    """

    num_steps: Int[Array, "*b t"]  # updates done
    context_loss: Float[Array, "*b t"]
    prior_loss: Float[Array, "*b t"]
    latents: Float[Array, "*b t latent"]


class Start(NamedTuple):
    """Where a search starts, and the encoder's Gaussian to which it is drawn; None without `encoder_weight`."""

    latent: Float[Array, "*b latent"]
    shifts: tuple[Float[Array, "*b _ _ _"], ...] = ()  # of the generator's features; none where they begin unshifted
    mean: Float[Array, "*b latent"] | None = None
    deviation: Float[Array, "*b latent"] | None = None
    labelled: Bool[Array, "*b"] | None = None  # whether the label stays as it is; None: it does not, or there is none


class Search(NamedTuple):
    """A search under way: the iterate and the best one so far."""

    start: Start
    num_steps: Int[Array, ""]  # updates done
    running: Bool[Array, ""]  # neither out of steps nor stopped
    latent: Float[Array, " latent"]
    optimizer: optax.OptState
    best_latent: Float[Array, " latent"]
    best_loss: Float[Array, ""]  # infinite before the first step
    earlier_loss: Float[Array, ""]  # the best one when the stopping rule last looked
    refinement: "Refinement | None"  # None unless `refine_steps` is set
    trace: Trace | None  # filled as far as the search has come; None unless `trace_every` is set


class Refinement(NamedTuple):
    """The part of a search that begins when the latent has been found."""

    begun: Bool[Array, ""]
    steps_left: Int[Array, ""]  # one more than updates: the first goes back to the best latent
    shifts: tuple[Float[Array, "_ _ _"], ...]  # of the generator's features
    optimizer: optax.OptState  # of latent and shifts


class Found(NamedTuple):
    """What a search has found."""

    latent: Float[Array, " latent"]  # the best iterate, the last one counted, or the last one; then refined
    shifts: tuple[Float[Array, "_ _ _"], ...]  # of the generator's features: the start's, or refined; there may be none
    context_loss: Float[Array, ""]
    prior_loss: Float[Array, ""]
    num_steps: Int[Array, ""]
    trace: Trace | None


def search(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    start: Start,
    optimizer: optax.GradientTransformation | None = None,
) -> Found:
    """Searches for one image from one start.

    Args:
        image: in [−1, 1], finite in the hole.
        weights: importance weights, 0 in the hole.
        start: one of `draw_starts`.
        optimizer: see `inpaint`.
    """

    def step(state):
        return search_step(prior, config, image, weights, state, optimizer)

    state = init_search(prior, config, start, optimizer)
    if config.tolerance:
        state = jax.lax.while_loop(lambda state: state.running, step, state)
    else:  # a count that is known beforehand can be differentiated in reverse
        state = jax.lax.fori_loop(0, most_steps(config), lambda _, state: step(state), state)
    return end_search(prior, config, image, weights, state)


def draw_starts(
    prior: Prior,
    config: InpaintConfig,
    known: Float[Array, "b h w c"],
    hole: Bool[Array, "b h w"],
    keys: PRNGKeyArray,
    labels: Int[Array, " b"] | None = None,
) -> Start:
    """Where searches start: at latents drawn from the prior, or at the encoder's best guess and draws around it.

    Args:
        known: images in [−1, 1], grey in the hole.
        hole: True = missing.
        keys: one for each image; its restart r uses fold_in(key, r).
        labels: of a conditional prior, −1 where the search is to find it: it then starts at all classes alike, or at
            the encoder's guess.
    """
    each = jax.vmap(lambda key: jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(config.restarts)))(keys)
    latents = jax.vmap(jax.vmap(lambda key: prior.sample_latents(key, 1)[0]))(each)
    start = Start(latents)
    if prior.encode is not None and (config.start == "encoder" or config.encoder_weight):
        encoded = prior.encode(prior.params, known, hole)
        mean, deviation, shifts = jax.tree.map(lambda x: jnp.repeat(x[:, None], config.restarts, axis=1), encoded)
        if config.encoder_weight:
            start = start._replace(mean=mean, deviation=deviation)
        if config.start == "encoder":
            noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, mean.shape[2:], mean.dtype)))(each)
            drawn = mean + deviation * noise.at[:, 0].set(0)
            start = start._replace(latent=_clip(prior, config, drawn))
        if config.start == "encoder" and config.start_shifts:
            if not shifts:
                raise ValueError(
                    f"`start_shifts` is {config.start_shifts} and this prior's encoder gives no shifts: make it 0"
                )
            shares = config.start_shifts * (1 - jnp.arange(config.restarts) / max(config.restarts - 1, 1))
            shifts = tuple(shares.reshape(-1, *[1] * (x.ndim - 2)).astype(x.dtype) * x for x in shifts)
            start = start._replace(shifts=shifts)
    if config.latent_bound is not None:
        clipped = jnp.clip(start.latent, -config.latent_bound, config.latent_bound)
        start = start._replace(latent=_keep_label(prior, clipped, start.latent))
    return _label(prior, config, start, labels) if prior.num_classes else start


def _label(prior: Prior, config: InpaintConfig, start: Start, labels) -> Start:
    labels = jnp.full(len(start.latent), -1) if labels is None else labels
    labels = jnp.broadcast_to(labels[:, None], start.latent.shape[:2])
    label, labelled = label_entries(prior, labels, start.latent.dtype), labels >= 0
    if prior.encode is not None and config.start == "encoder":
        label = jnp.where(labelled[..., None], label, start.latent[..., -prior.num_classes :])
    return start._replace(latent=with_label(prior, start.latent, label), labelled=labelled)


def init_search(
    prior: Prior,
    config: InpaintConfig,
    start: Start,
    optimizer: optax.GradientTransformation | None = None,
) -> Search:
    """A search that has yet to take its first step."""
    latent = start.latent
    no_loss = jnp.full((), jnp.inf, jnp.promote_types(latent.dtype, jnp.float32))
    trace = refinement = None
    if config.refine_steps:
        shifts = start.shifts or tuple(jnp.zeros(shape, latent.dtype) for shape in prior.feature_shapes)
        refinement = Refinement(
            begun=jnp.asarray(config.num_steps == 0),
            steps_left=jnp.asarray(config.refine_steps + 1, jnp.int32),
            shifts=shifts,
            optimizer=_refiner(config).init((latent, shifts)),
        )
    if config.trace_every:
        points = len(_traced_steps(config))
        losses = jnp.zeros(points, no_loss.dtype)
        trace = Trace(jnp.zeros(points, jnp.int32), losses, losses, jnp.zeros((points, *latent.shape), latent.dtype))
    return Search(
        start=start,
        num_steps=jnp.zeros((), jnp.int32),
        running=jnp.asarray(most_steps(config) > 0),
        latent=latent,
        optimizer=_optimizer(config, optimizer).init(latent),
        best_latent=latent,
        best_loss=no_loss,
        earlier_loss=no_loss,
        refinement=refinement,
        trace=trace,
    )


def most_steps(config: InpaintConfig) -> int:
    """How many `search_step` a search takes at the most."""
    return config.num_steps + (config.refine_steps + 1 if config.refine_steps else 0)


def search_step(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    search: Search,
    optimizer: optax.GradientTransformation | None = None,
) -> Search:
    """One step: judges the iterate, keeps it if it is the best so far, and moves on, within the bounds.

    With `refine_steps` the features move too once the latent has been found. With a `tolerance`, a search that no
    longer runs stays as it is.
    """
    shifts, searching = search.start.shifts, 1
    if search.refinement is not None:
        # Features that shape the hole alone know the prior loss only, and Adam, which levels gradients, would let
        # them run after the discriminator's weaknesses.
        shifts = search.refinement.shifts
        searching = ~search.refinement.begun | (search.refinement.steps_left > config.refine_steps)

    def objective(z, shifts):
        context, prior_term = _losses(prior, config, image, weights, z, shifts)
        return context + searching * prior_term + _distance(config, search.start, z), (context, prior_term)

    (loss, losses), gradient = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(search.latent, shifts)
    if search.start.labelled is not None:
        still = _keep_label(prior, gradient[0], jnp.zeros_like(gradient[0]))
        gradient = jnp.where(search.start.labelled, still, gradient[0]), gradient[1]
    best_latent, best_loss = _better(search, loss)
    updates, state = _optimizer(config, optimizer).update(
        gradient[0],
        search.optimizer,
        search.latent,
        value=loss,
        grad=gradient[0],
        value_fn=lambda z: objective(z, shifts)[0],
    )
    num_steps = search.num_steps + 1
    running, earlier_loss = num_steps < config.num_steps, search.earlier_loss
    if config.tolerance:
        look = num_steps % config.patience == 0
        falls = earlier_loss - best_loss > config.tolerance * jnp.abs(best_loss)
        running &= falls | ~look
        earlier_loss = jnp.where(look, best_loss, earlier_loss)
    moved = Search(
        start=search.start,
        num_steps=num_steps,
        running=running,
        latent=_clip(prior, config, jnp.asarray(optax.apply_updates(search.latent, updates)), search.start),
        optimizer=state,
        best_latent=best_latent,
        best_loss=best_loss,
        earlier_loss=earlier_loss,
        refinement=search.refinement,
        trace=_record(config, search, losses),
    )
    if search.refinement is not None:
        refinement = search.refinement._replace(begun=~running)
        moved = moved._replace(running=jnp.asarray(True), refinement=refinement)
        refined = _refine(prior, config, search, best_latent, best_loss, gradient)._replace(trace=moved.trace)
        moved = _where(search.refinement.begun, refined, moved)
    if config.tolerance:
        moved = _where(search.running, moved, search)
    return moved


def _refine(prior, config, search: Search, best_latent, best_loss, gradient) -> Search:
    """A step of the refinement: the first goes back to the best latent, the others move it and the features."""
    refinement = search.refinement
    assert refinement is not None
    updates, optimizer = _refiner(config).update(gradient, refinement.optimizer)
    moved: Any = optax.apply_updates((search.latent, refinement.shifts), updates)
    latent, shifts = moved
    first = refinement.steps_left > config.refine_steps
    found = best_latent if config.keep_best else search.latent
    left = refinement.steps_left - 1
    going = refinement._replace(steps_left=left, shifts=shifts, optimizer=optimizer)
    return search._replace(
        num_steps=search.num_steps + ~first,
        running=left > 0,
        latent=jnp.where(first, found, _clip(prior, config, latent, search.start)),
        best_latent=best_latent,
        best_loss=jnp.where(first, best_loss, search.best_loss),
        refinement=_where(first, refinement._replace(steps_left=left), going),
    )


def end_search(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    search: Search,
) -> Found:
    """What the search has found so far."""
    latent, shifts = search.latent, search.start.shifts if search.refinement is None else search.refinement.shifts
    losses = _losses(prior, config, image, weights, latent, shifts)
    end = Trace(search.num_steps, *losses, latent)
    if config.keep_best and not config.refine_steps:
        latent, _ = _better(search, sum(losses) + _distance(config, search.start, latent))
        losses = _losses(prior, config, image, weights, latent, shifts)
    trace = search.trace
    if trace is not None:
        recorded = jnp.asarray(_traced_steps(config)) < search.num_steps

        def fill(points, last):
            return jnp.where(recorded.reshape(-1, *[1] * (points.ndim - 1)), points, last)

        trace = jax.tree.map(fill, trace, end)
    return Found(latent, shifts, *losses, search.num_steps, trace)


def _where(condition, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def _traced_steps(config):
    last = config.num_steps + config.refine_steps
    return [*range(0, last, config.trace_every), last]


def _record(config, search, losses):
    """The trace with the iterate of `search` in it, if it is due."""
    if search.trace is None:
        return None
    place, rest = jnp.divmod(search.num_steps, config.trace_every)
    place = jnp.where(rest == 0, place, len(_traced_steps(config)))  # beyond the end: dropped
    return jax.tree.map(
        lambda points, point: points.at[place].set(point, mode="drop"),
        search.trace,
        Trace(search.num_steps, losses[0], losses[1], search.latent),
    )


def _losses(prior, config, image, weights, z, shifts=()):
    completion = generate_one(prior, z, shifts)[None]
    context = context_loss(completion, image[None], weights[None])[0]
    if prior.discriminate is None or config.prior_weight == 0:
        return context, jnp.zeros_like(context)
    return context, prior_loss(prior.discriminate(prior.params, completion), config.prior_weight)[0]


def _distance(config, start: Start, z):
    """The negative logarithm of the encoder's Gaussian, weighted, up to a constant."""
    if start.mean is None:
        return 0.0
    return config.encoder_weight / 2 * jnp.sum(((z - start.mean) / start.deviation) ** 2)


def generate_one(prior: Prior, z: Float[Array, " latent"], shifts: tuple[Array, ...]) -> Float[Array, "h w c"]:
    """The image of a latent, with the features shifted if there are shifts."""
    if not shifts:
        return prior.generate(prior.params, z[None])[0]
    return prior.generate(prior.params, z[None], tuple(x[None] for x in shifts))[0]


def _better(search: Search, loss):
    better = loss < search.best_loss
    best_loss = jnp.where(better, loss.astype(search.best_loss.dtype), search.best_loss)  # a loop keeps its types
    return jnp.where(better, search.latent, search.best_latent), best_loss


def _clip(prior, config, latent, start: Start | None = None):
    """The latent within its bounds; its label on the simplex, or where it started if it is given."""
    bounds = prior.latent_bounds if config.latent_bound is None else (-config.latent_bound, config.latent_bound)
    clipped = jnp.clip(latent, *bounds) if config.clip and bounds is not None else latent
    if not prior.num_classes:
        return clipped
    clipped = with_label(prior, clipped, project_onto_simplex(latent[..., -prior.num_classes :]))
    if start is not None and start.labelled is not None:
        clipped = jnp.where(start.labelled, _keep_label(prior, clipped, start.latent), clipped)
    return clipped


def _keep_label(prior, latent, other):
    """The latent with the label of another."""
    return with_label(prior, latent, other[..., -prior.num_classes :]) if prior.num_classes else latent


def project_onto_simplex(x: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
    """The nearest point whose entries are 0 or above and have the sum 1 (Duchi et al. 2008, figure 1)."""
    descending = jnp.flip(jnp.sort(x, axis=-1), axis=-1)
    count = jnp.arange(1, x.shape[-1] + 1)
    excess = (jnp.cumsum(descending, axis=-1) - 1) / count  # each entry's, were the first `count` entries those above 0
    above = jnp.sum(descending > excess, axis=-1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(excess, above - 1, axis=-1), 0)


def _refiner(config):
    return optax.adam(config.refine_learning_rate, eps_root=1e-30)


def _optimizer(config, optimizer):
    if optimizer is None:
        # Far below any gradient that counts: without it Adam's square root has no derivative where a gradient is 0.
        optimizer = optax.adam(config.learning_rate, eps_root=1e-30)
    return optax.with_extra_args_support(optimizer)  # line searches take the loss and its function
