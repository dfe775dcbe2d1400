"""Every method meets the same luck: weights, batches and splits depend on the workload, the seed
and the stream alone.
"""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import clipbench.workloads  # noqa: F401  (registers them)
from clipbench import feed, registry, trees
from clipbench.errors import UsageError

# origin is digits, enlarged: too slow to be worth its turn everywhere
NAMES = ["wdbc", "digits", "temporal-order", "cosh"]


def built(name, **fields):
    return registry.build("workload", name, fields)


def digest(name):
    """Weights, ten batches and evaluation data of a workload at seed 3, down to the bit:
    `test_engines` asks another process.
    """
    work, found = built(name), hashlib.sha256()
    tensors = [*feed.model(work, 3).state_dict().values()]
    tensors += [tensor for batch in feed.batches(work, 3, 16, 10) for tensor in batch]
    tensors += [tensor for split in feed.splits(work, 3).values() for tensor in split]
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


class Tiny:
    """Ten examples, each its own number; the split does not depend on the seed."""

    name = "tiny"
    calls = 0

    def data(self):
        self.calls += 1
        pair = (torch.arange(10.0)[:, None], torch.arange(10))
        return dict.fromkeys(("train", "validation", "test"), pair)


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_depend_on_the_method(name):
    """Two methods that train, one of them with random numbers of its own, are fed the same bits."""

    def fed(method, *, noisy):
        work, seen = built(name), []
        model = feed.model(work, 0)
        optimizer = method(model.parameters(), lr=0.01)
        for inputs, targets in feed.batches(work, 0, 8, 12):
            seen += [inputs, targets]
            optimizer.zero_grad()
            feed.loss_of(work, model(inputs), targets).backward()
            if noisy:
                torch.rand(5)
            optimizer.step()
        return seen

    with torch.random.fork_rng(devices=[]):
        left, right = fed(torch.optim.SGD, noisy=False), fed(torch.optim.Adam, noisy=True)
    assert all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("name", [*NAMES, "origin"])
def test_nothing_here_touches_the_global_random_state(name):
    work, before = built(name), torch.random.get_rng_state()
    feed.model(work, 0)
    feed.splits(work, 0)
    next(iter(feed.batches(work, 0, 4, 1)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_batches_depend_on_the_seed(name):
    work = built(name)
    one, other = ({**feed.model(work, seed).state_dict()} for seed in (0, 1))
    assert not all(torch.equal(one[key], other[key]) for key in one)
    first, second = (next(iter(feed.batches(work, seed, 8, 1)))[0] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_more_steps_keep_the_batches_there_were(name):
    work = built(name)
    few, many = list(feed.batches(work, 0, 30, 5)), list(feed.batches(work, 0, 30, 60))
    for (inputs, targets), (same_inputs, same_targets) in zip(few, many, strict=False):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)


@pytest.mark.parametrize("name", NAMES)
def test_float64_widens_the_luck_of_float32(name):
    """The two precisions start from the same weights and see the same numbers; whole numbers
    stay whole.
    """
    work = built(name)
    narrow, wide = feed.model(work, 0), feed.model(work, 0, torch.float64)
    for one, other in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(one.double(), other)
    batches = zip(
        feed.batches(work, 0, 8, 3), feed.batches(work, 0, 8, 3, torch.float64), strict=True
    )
    for (inputs, targets), (wide_inputs, wide_targets) in batches:
        assert wide_inputs.dtype == torch.float64
        assert torch.equal(inputs.double(), wide_inputs)
        assert torch.equal(targets, wide_targets.to(targets.dtype))
        assert targets.is_floating_point() == wide_targets.is_floating_point()


@given(st.integers(1, 60), st.data(), st.integers(0, 40), st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_an_epoch_visits_no_example_twice(examples, data, steps, seed):
    """And there are as many batches as steps, each of full size."""
    batch = data.draw(st.integers(1, examples))
    order = feed.order(examples, batch, steps, torch.Generator().manual_seed(seed), "any")
    assert order.shape == (steps, batch)
    for epoch in order.split(examples // batch):
        assert len(epoch.unique()) == epoch.numel()
        assert bool(((epoch >= 0) & (epoch < examples)).all())


def test_a_batch_that_divides_the_data_visits_all_of_it_in_a_new_order_each_epoch():
    first, second = feed.order(12, 4, 6, torch.Generator().manual_seed(0), "any").split(3)
    assert (
        first.flatten().sort().values.tolist()
        == second.flatten().sort().values.tolist()
        == list(range(12))
    )
    assert not torch.equal(first, second)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        UsageError, match='workload "tiny": a batch of 11 is larger than its 10 training examples'
    ):
        next(iter(feed.batches(Tiny(), 0, 11, 1)))


def test_inputs_and_targets_stay_together():
    for inputs, targets in feed.batches(Tiny(), 0, 3, 9):
        assert inputs.flatten().tolist() == targets.tolist()


def test_data_without_a_generator_is_loaded_once_for_all_seeds():
    tiny = Tiny()
    splits = [
        feed.splits(tiny, seed, dtype)
        for seed in range(3)
        for dtype in (torch.float32, torch.float64)
    ]
    assert tiny.calls == 1
    assert all(torch.equal(split["train"][1], splits[0]["train"][1]) for split in splits)


def test_the_loss_of_a_workload_without_one_is_its_output():
    assert feed.loss_of(Tiny(), torch.tensor(3.0), torch.tensor(1.0)) == 3.0


def test_streams_of_other_names_seeds_and_workloads_are_other_streams():
    keys = [("a", 0, "weights"), ("a", 0, "batches"), ("a", 1, "weights"), ("b", 0, "weights")]
    assert len({trees.seed_of(*key) for key in keys}) == len(keys)


def test_a_model_that_takes_the_seed_is_handed_its_number():
    """And is built under the seeded random state all the same."""

    class Numbered(Tiny):
        def model(self, seed):
            self.drawn = torch.rand(())
            return nn.Linear(seed, 1)

    one = Numbered()
    assert feed.model(one, 3).in_features == 3
    with trees.seeded("tiny", 3, "weights"):
        assert one.drawn == torch.rand(())


def test_weights_are_those_of_a_plainly_seeded_module():
    """``model`` is nothing but the constructor under a seed: no second draw, no hidden
    initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trees.seed_of("wdbc", 5, "weights"))
        plain = nn.Sequential(
            nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )
    for one, other in zip(
        plain.parameters(), feed.model(built("wdbc"), 5).parameters(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_model_is_refused_by_name(kind, dtype):
    """Moved to a real dtype, as modules are, it would lose its imaginary parts in silence."""

    class Spectral(Tiny):
        name = "spectral"

        def model(self):
            module = nn.Linear(3, 2)
            tensor = torch.ones(3, dtype=dtype)
            if kind == "buffer":
                module.register_buffer("filter", tensor)
            else:
                module.filter = nn.Parameter(tensor)
            return module

    words = f'workload "spectral": `filter` is complex .{str(dtype).removeprefix("torch.")}.'
    with pytest.raises(UsageError, match=words):
        feed.model(Spectral(), 0)


def test_splits_are_held_by_their_bytes_and_the_latest_stay(monkeypatch):
    """Two of the three fit: the third drives out the one not used for longest."""
    work = registry.build("workload", "digits", {})
    drawn = []
    whole = feed._drawn
    monkeypatch.setattr(feed, "_held", feed._Held())
    monkeypatch.setattr(feed, "_drawn", lambda *key: drawn.append(key[1]) or whole(*key))
    size = feed._bytes(feed.splits(work, 0))
    monkeypatch.setattr(feed, "KEPT_BYTES", 2 * size)
    for seed in (1, 0, 2, 0, 1):
        feed.splits(work, seed)
    assert drawn == [0, 1, 2, 1]
    monkeypatch.setattr(feed, "KEPT_BYTES", 1)
    feed.splits(work, 5)
    assert list(feed._held.splits) == [(work, 5, torch.float32, "cpu")]
    assert feed._held.bytes == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_of_a_replica_differ_in_their_last_digits_only(dtype):
    work = built("digits")
    plain, once, again, other = (
        nn.utils.parameters_to_vector(feed.model(work, 3, dtype, replica=number).parameters())
        for number in (0, 1, 1, 2)
    )
    moved = (once / plain - 1).nan_to_num().abs()
    assert 3e-8 < moved.mean() < 2e-7
    assert moved.max() < 1e-6
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


class Drawn:
    """A workload that draws its batches, many at once if asked."""

    name = "drawn"

    def sample(self, generator, batch):
        return torch.rand(batch, 2, generator=generator), torch.zeros(batch)

    def samples(self, generator, batch, count):
        inputs, targets = self.sample(generator, count * batch)
        return inputs.unflatten(0, (count, batch)), targets.unflatten(0, (count, batch))


class Again(Drawn):
    """Draws otherwise, and says so of one batch only."""

    name = "again"

    def sample(self, generator, batch):
        return -torch.rand(batch, 2, generator=generator), torch.ones(batch)


class Few(Drawn):
    def samples(self, generator, batch, count):
        return super().samples(generator, batch, count - 1)


@pytest.mark.parametrize(
    "work", [*(built(name) for name in NAMES), Drawn(), Again()], ids=lambda work: work.name
)
def test_batches_taken_together_are_those_taken_one_by_one(work):
    """A class that draws one batch otherwise does not inherit how many are drawn."""
    alone, together = (feed.source(work, 1, 4, 9) for _ in range(2))
    alone.many = None
    expected, each = list(alone.some(9)), list(feed.batches(work, 1, 4, 9))
    parts = [together.take(2), together.take(7)]
    for column in (0, 1):
        wanted = torch.stack([batch[column] for batch in expected])
        assert torch.equal(wanted, torch.cat([part[column] for part in parts]))
        assert torch.equal(wanted, torch.stack([batch[column] for batch in each]))


def test_samples_that_are_not_as_many_as_were_asked_for_are_refused():
    with pytest.raises(UsageError, match="asked for 3 batches, and returned 2 of inputs and 2 of"):
        feed.source(Few(), 0, 4, 3).take(3)
