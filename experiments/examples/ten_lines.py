"""A network of one's own, explained in ten lines: of Flax NNX, Flax Linen, and Equinox.

Each is given the network, pairs of step and network (or variables) that were kept while it was trained, and a data set.
"""

import i2x_jax


def of_nnx(kept, data, workdir):
    """`kept` holds pairs of step and network; it is cut behind the layer called `second`."""
    from flax import nnx

    model = i2x_jax.OwnModel.from_nnx(kept[0][1], "second", data.images[:2])
    checkpoints = [(step, nnx.state(net, nnx.Not(nnx.RngState))) for step, net in kept]
    return i2x_jax.explain(model, checkpoints, data, {"explain": {"num_prototypes": 4}}, workdir)


def of_linen(net, kept, data, workdir):
    """`kept` holds pairs of step and variables; the network has methods `features` and `head`."""
    model = i2x_jax.OwnModel(
        lambda variables, images: net.apply(variables, images, method="features"),
        lambda variables, features: net.apply(variables, features, method="head"),
    )
    return i2x_jax.explain(model, kept, data, {"explain": {"num_prototypes": 4}}, workdir)


def of_equinox(kept, data, workdir):
    """`kept` holds pairs of step and network, which takes one image; it has methods `features` and `head`."""
    import equinox as eqx
    import jax

    arrays = [(step, jax.tree.leaves(eqx.filter(net, eqx.is_array))) for step, net in kept]
    of, rest = eqx.partition(kept[0][1], eqx.is_array)
    net = lambda leaves: eqx.combine(jax.tree.unflatten(jax.tree.structure(of), leaves), rest)  # noqa: E731
    model = i2x_jax.OwnModel(
        lambda leaves, images: jax.vmap(net(leaves).features)(images),
        lambda leaves, features: jax.vmap(net(leaves).head)(features),
    )
    return i2x_jax.explain(model, arrays, data, {"explain": {"num_prototypes": 4}}, workdir)
