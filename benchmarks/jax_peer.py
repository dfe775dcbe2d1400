"""The same lanes in JAX: momentum and the norm clip on some packaged workloads, jit of vmap of
scan, in one thread.

``python benchmarks/jax_peer.py wdbc --seconds 2 --lanes 16,64`` prints JSON: microseconds of one
lane and step for each number of lanes. It needs jax and optax, and neither torch nor clipbench:
`engines.py` starts it with an interpreter of its own.

JAX has the lighter task: its batches are drawn beforehand, once, and of a step it keeps the loss
alone.
"""

import os

# read when jax is imported
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from timing import ready, timed

STEPS = 100  # of one call: one scan
SEEDS = 3
MOMENTUM, MAX_NORM, LR = 0.9, 0.5, 0.01


def cross_entropy(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def dense(key, inputs, outputs):
    """Torch's own start of a linear layer: uniform within 1/√inputs."""
    bound = inputs**-0.5
    weight, bias = jax.random.split(key)
    return jax.random.uniform(
        weight, (inputs, outputs), minval=-bound, maxval=bound
    ), jax.random.uniform(bias, (outputs,), minval=-bound, maxval=bound)


def convolved(images, weight, stride):
    """A padded 3×3 convolution as one product: JAX's own, with other weights in every lane,
    takes six times as long.
    """
    padded, size = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))), images.shape[-1]
    shifted = [
        padded[..., row : row + size : stride, column : column + size : stride]
        for row in range(3)
        for column in range(3)
    ]
    return jnp.einsum("pnchw,ocp->nohw", jnp.stack(shifted), weight.reshape(*weight.shape[:2], 9))


class Wdbc:
    """An MLP 30-64-64-2."""

    def init(self, key):
        sizes = [(30, 64), (64, 64), (64, 2)]
        return [
            dense(one, *size) for one, size in zip(jax.random.split(key, 3), sizes, strict=True)
        ]

    def batches(self, drawn, shape):
        targets = drawn.integers(0, 2, (*shape, 32))
        return (drawn.normal(size=(*shape, 32, 30)) + targets[..., None]).astype("f4"), targets

    def loss(self, params, inputs, targets):
        *hidden, (weight, bias) = params
        for across, shift in hidden:
            inputs = jax.nn.relu(inputs @ across + shift)
        return cross_entropy(inputs @ weight + bias, targets)


class Digits:
    """Two convolutions of 8 and 16 channels, the second of stride 2, and a linear layer."""

    def init(self, key):
        first, second, last = jax.random.split(key, 3)
        return {
            "first": (0.3 * jax.random.normal(first, (8, 1, 3, 3)), jnp.zeros(8)),
            "second": (0.1 * jax.random.normal(second, (16, 8, 3, 3)), jnp.zeros(16)),
            "last": dense(last, 256, 10),
        }

    def batches(self, drawn, shape):
        targets = drawn.integers(0, 10, (*shape, 32))
        return (
            drawn.uniform(size=(*shape, 32, 1, 8, 8)) * (1 + targets[..., None, None, None]) / 10
        ).astype("f4"), targets

    def loss(self, params, inputs, targets):
        for name, stride in (("first", 1), ("second", 2)):
            weight, bias = params[name]
            found = convolved(inputs, weight, stride)
            inputs = jax.nn.relu(found + bias[:, None, None])
        weight, bias = params["last"]
        return cross_entropy(inputs.reshape(len(inputs), -1) @ weight + bias, targets)


class TemporalOrder:
    """A tanh network of 50 units; what the inputs give is one product for all steps, before the
    scan over time.
    """

    def __init__(self, length):
        self.length = length

    def init(self, key):
        across, along, last = jax.random.split(key, 3)
        return {
            "across": 0.1 * jax.random.normal(across, (6, 50)),
            "bias": jnp.zeros(50),
            "along": 0.1 * jax.random.normal(along, (50, 50)),
            "last": (0.1 * jax.random.normal(last, (50, 4)), jnp.zeros(4)),
        }

    def batches(self, drawn, shape):
        symbols = drawn.integers(0, 6, (*shape, 20, self.length))
        return np.eye(6, dtype="f4")[symbols], drawn.integers(0, 4, (*shape, 20))

    def loss(self, params, inputs, targets):
        driven = (inputs @ params["across"] + params["bias"]).swapaxes(0, 1)

        def advance(state, step):
            return jnp.tanh(step + state @ params["along"]), None

        state, _ = lax.scan(advance, jnp.zeros(driven.shape[1:]), driven)
        weight, bias = params["last"]
        return cross_entropy(state @ weight + bias, targets)


class Text:
    """A causal transformer over 96 characters: width 32, two layers of four heads, T = 32."""

    WIDTH, DEPTH, HEADS, CONTEXT, CHARACTERS = 32, 2, 4, 32, 96

    def init(self, key):
        width, keys = self.WIDTH, iter(jax.random.split(key, 3 + 4 * self.DEPTH))

        def drawn(*shape):
            return 0.02 * jax.random.normal(next(keys), shape)

        def normed():
            return jnp.ones(width), jnp.zeros(width)

        return {
            "characters": drawn(self.CHARACTERS, width),
            "positions": drawn(self.CONTEXT, width),
            "blocks": [
                {
                    "before attention": normed(),
                    "before hidden": normed(),
                    "attended": drawn(width, 3 * width),
                    "joined": (drawn(width, width), jnp.zeros(width)),
                    "hidden": (drawn(width, 4 * width), jnp.zeros(4 * width)),
                    "folded": (drawn(4 * width, width), jnp.zeros(width)),
                }
                for _ in range(self.DEPTH)
            ],
            "norm": normed(),
            "output": (drawn(width, self.CHARACTERS), jnp.zeros(self.CHARACTERS)),
        }

    def batches(self, drawn, shape):
        # as characters that follow each other in a text do, one is likely to come again
        characters = drawn.zipf(1.5, (*shape, 32, self.CONTEXT + 1)) % self.CHARACTERS
        return characters[..., :-1], characters[..., 1:]

    def loss(self, params, inputs, targets):
        # products with ones and zeros: to gather from a table and to scatter into its gradient
        # takes JAX a tenth longer
        given, wanted = (jax.nn.one_hot(one, self.CHARACTERS) for one in (inputs, targets))
        ahead = jnp.triu(jnp.full((self.CONTEXT, self.CONTEXT), -jnp.inf), 1)
        x = given @ params["characters"] + params["positions"]
        for block in params["blocks"]:
            x = x + self.attention(block, x, ahead)
            (across, shift), (back, last) = block["hidden"], block["folded"]
            x = x + jax.nn.relu(standardised(x, *block["before hidden"]) @ across + shift) @ back
            x = x + last
        weight, bias = params["output"]
        logits = standardised(x, *params["norm"]) @ weight + bias
        return (jax.nn.logsumexp(logits, -1) - (logits * wanted).sum(-1)).mean()

    def attention(self, block, x, ahead):
        split = standardised(x, *block["before attention"]) @ block["attended"]
        query, key, value = jnp.moveaxis(split.reshape(*x.shape[:2], 3, self.HEADS, -1), 2, 0)
        scores = jnp.einsum("nthw,nshw->nhts", query, key) / key.shape[-1] ** 0.5 + ahead
        seen = jnp.einsum("nhts,nshw->nthw", jax.nn.softmax(scores), value)
        across, shift = block["joined"]
        return seen.reshape(x.shape) @ across + shift


def standardised(x, weight, bias):
    """A layer norm over the last axis."""
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-5) * weight + (
        bias
    )


class Cosh:
    """The sum of cosh over ten numbers, with noise on the gradient alone."""

    def init(self, key):
        return jax.random.uniform(key, (10,), minval=4.0, maxval=8.0)

    def batches(self, drawn, shape):
        return (0.1 * drawn.normal(size=(*shape, 1, 10))).astype("f4"), np.zeros((*shape, 1), "f4")

    def loss(self, params, inputs, targets):
        return jnp.cosh(params).sum() + (inputs * (params - lax.stop_gradient(params))).sum()


def program(model):
    """``STEPS`` steps of all lanes as one compiled program; weights and momentum are handed on,
    in place.
    """

    def lane(params, state, lr, max_norm, seed, batches):
        rule = optax.chain(optax.clip_by_global_norm(max_norm), optax.trace(MOMENTUM))

        def step(carry, batch):
            params, state = carry
            inputs, targets = (part[seed] for part in batch)
            loss, grads = jax.value_and_grad(model.loss)(params, inputs, targets)
            direction, state = rule.update(grads, state, params)
            return (
                jax.tree.map(lambda param, change: param - lr * change, params, direction),
                state,
            ), loss

        return lax.scan(step, (params, state), batches)

    return jax.jit(jax.vmap(lane, in_axes=(0, 0, 0, 0, 0, None)), donate_argnums=(0, 1))


def measure(model, lanes, seconds, meet):
    """Microseconds of one lane and step, the median over calls; each lane has its own learning
    rate and threshold.
    """
    params = jax.vmap(model.init)(jax.random.split(jax.random.PRNGKey(0), SEEDS))
    seed = jnp.arange(lanes) % SEEDS
    carry = jax.tree.map(lambda leaf: leaf[seed], params)
    carry = (
        carry,
        jax.vmap(optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.trace(MOMENTUM)).init)(
            carry
        ),
    )
    spread = 2 ** (jnp.arange(lanes) / lanes)
    batches = tuple(
        jnp.asarray(part) for part in model.batches(np.random.default_rng(0), (STEPS, SEEDS))
    )
    run = program(model)

    def block():
        nonlocal carry
        carry, losses = run(*carry, LR * spread, MAX_NORM * spread, seed, batches)
        return np.asarray(losses).ravel()

    parameters = sum(leaf.size for leaf in jax.tree.leaves(params)) // SEEDS
    return timed(block, STEPS * lanes, seconds, meet) | {"parameters": parameters}


def main():
    models = {"wdbc": Wdbc, "digits": Digits, "temporal-order": TemporalOrder, "cosh": Cosh}
    models |= {"text": Text}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", choices=models)
    parser.add_argument("--length", type=int, default=20, help="T of temporal-order")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="how long each number of lanes is measured"
    )
    parser.add_argument("--lanes", default="16,32,64,128", help="numbers of lanes, with commas")
    parser.add_argument(
        "--together",
        action="store_true",
        help="before each measurement print ready and wait for a line",
    )
    given = parser.parse_args()
    model = (
        TemporalOrder(given.length)
        if given.workload == "temporal-order"
        else models[given.workload]()
    )
    counts = [int(count) for count in given.lanes.split(",")]
    meet = ready if given.together else lambda: None
    found = {count: measure(model, count, given.seconds, meet) for count in counts}
    versions = {"jax": jax.__version__, "jaxlib": jax.lib.__version__, "optax": optax.__version__}
    sys.stdout.write(json.dumps({"lanes": found, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
