"""The TensorBoard events of a run, as TensorBoard's own reader finds them."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(run):
    """All events of a run."""
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()


def read_curves(run):
    """The points (step, value) of each curve, by its name."""
    events = read_events(run)
    return {name: [(x.step, x.value) for x in events.Scalars(name)] for name in events.Tags()["scalars"]}
