"""The table and the diagram of the networks."""

import jax
import numpy as np
import pytest

from dcgan_jax.networks import convolution, diagram, layers
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import init_state

MODELS = [
    ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=8),
    ModelConfig(image_size=128, base_width=6, latent_dim=5),
]


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_is_listed_with_its_parameters(model):
    state = jax.eval_shape(lambda key: init_state(TrainConfig(model=model), key), jax.random.key(0))
    for network, rows in diagram.layers(model).items():
        params = getattr(state, network)
        assert len(rows) == len(params) and {row.name for row in rows} == params.keys()
        for row in rows:
            assert row.parameters == sum(x.size for x in jax.tree.leaves(params[row.name]))
            assert f"| {row.name} | {row.operation} |" in diagram.table(model)
        total = sum(x.size for x in jax.tree.leaves(params))
        assert f"| **total** | | | **{total:,}** |" in diagram.table(model)


@pytest.mark.parametrize("model", MODELS)
def test_listed_shapes_are_the_convolutions_outputs(model, monkeypatch):
    rows, seen = diagram.layers(model), {"conv_up": [], "conv_down": []}
    for name, found in seen.items():

        def watch(x, kernel, name=name, found=found):
            result = getattr(convolution, name)(x, kernel)
            found.append(result.shape[1:])
            return result

        monkeypatch.setattr(layers, name, watch)
    jax.eval_shape(lambda key: init_state(TrainConfig(model=model), key), jax.random.key(0))
    assert seen["conv_up"] == [row.shape for row in rows["generator"] if row.name.startswith("up_")]
    assert seen["conv_down"] == [row.shape for row in rows["discriminator"] if row.name.startswith("down_")]


def test_the_diagram_has_a_block_for_every_shape():
    def blocks(model, colour):
        middle = np.flatnonzero((diagram.draw(model) == colour).all(-1).any(1))  # rows that contain the colour
        row = (diagram.draw(model)[(middle[0] + middle[-1]) // 2 - 2] == colour).all(-1)
        return int((np.diff(row.astype(int)) == 1).sum())

    small, large = MODELS
    # Input, dense layer, and 3 (32 pixels) or 5 (128 pixels) convolutions.
    for colour in ((158, 202, 225), (253, 174, 107)):
        assert [blocks(small, colour), blocks(large, colour)] == [5, 7]
