"""Programs: what is traced is what was written, or it is refused with a sentence; grain and
memory are those of the graph.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from clipbench import registry, trees
from clipbench.engines import program
from clipbench.engines.program import GRAIN, NoLanes, grain, peak_bytes, trace
from clipbench.engines.stacked import Model

FLOATS = 1000
BYTES = 4 * FLOATS  # of one tensor of so many numbers in float32


def traced(function, *arguments, what="it"):
    return trace(function, arguments or (torch.zeros(FLOATS),), what)


def drawn(*sizes):
    return torch.randn(*sizes, generator=trees.generator("program", 0, "numbers"))


# -------------------------------------------------------------------------------------------- truth


def test_a_program_computes_what_its_function_does_on_other_numbers_too():
    def function(left, right):
        return (left @ right).relu().sum(1), left.mean((1, 2))

    graph = traced(function, torch.zeros(3, 2, 4), torch.zeros(3, 4, 5))
    given = drawn(3, 2, 4), drawn(3, 4, 5)
    for found, expected in zip(graph(*given), function(*given), strict=True):
        assert torch.equal(found, expected)


def test_a_program_of_gradients_is_the_gradient_of_every_lane():
    def loss(weights, inputs):
        return (weights * inputs).relu().square().sum()

    weights, inputs = drawn(3, 7), drawn(3, 7)
    graph = traced(torch.vmap(torch.func.grad(loss)), torch.zeros(3, 7), torch.ones(3, 7))
    found = graph(weights, inputs)
    for lane in range(3):
        assert torch.equal(found[lane], torch.func.grad(loss)(weights[lane], inputs[lane]))


def test_one_tensor_given_twice_is_a_mistake_of_the_caller():
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match="given twice"):
        trace(torch.add, (zeros, zeros), "it")


# ----------------------------------------------------------------------------------------- refusals


def branching(weights):
    return weights.square().sum() if weights.sum() > 0 else weights.sum()


def dropping(weights):
    return functional.dropout(weights, 0.5).sum()


def reading(weights):
    return weights * weights.sum().item()


def falling_back(weights):
    return functional.multi_margin_loss(weights.view(1, -1), torch.zeros(1, dtype=torch.long))


def raising(_):
    raise ZeroDivisionError("no,\nthanks")


@pytest.mark.parametrize(
    ("function", "because"),
    [
        (branching, "reads the values of its tensors"),
        (dropping, "draws at random"),
        (reading, "reads the values of its tensors"),
        (falling_back, "lane by lane"),
        (raising, r"ZeroDivisionError: no, thanks\)$"),
    ],
    ids=[
        "a branch on a number",
        "a random draw",
        "a number taken out",
        "what vmap runs lane by lane",
        "an error",
    ],
)
def test_what_has_no_true_trace_is_refused_in_one_sentence_that_names_it(function, because):
    with pytest.raises(NoLanes, match=because) as refusal:
        traced(torch.vmap(function), torch.zeros(2, 4), what='workload "odd"')
    sentence = str(refusal.value)
    assert sentence.startswith('workload "odd" ')
    assert "runs in the loop" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("pure", [True, False])
def test_a_change_of_an_argument_is_refused_unless_it_is_wanted(pure):
    def counting(weights, count):
        count.add_(1)
        return weights * count

    given = torch.full((2,), 3.0), torch.zeros(2)
    if pure:
        with pytest.raises(NoLanes, match=r"^it changes its buffers while it trains"):
            trace(counting, given, "it")
    else:
        graph = trace(counting, given, "it", pure=False)
        count = torch.full((2,), 5.0)
        assert graph(given[0], count).tolist() == [18.0, 18.0]
        assert count.tolist() == [6.0, 6.0]


def test_a_refusal_is_no_longer_than_a_sentence():
    def raising(_):
        raise ValueError("x" * 10000)

    with pytest.raises(NoLanes) as refusal:
        traced(raising)
    assert len(str(refusal.value)) < 300


def test_a_refused_trace_leaves_the_gradient_mode_and_the_warnings_as_they_were():
    assert torch.is_grad_enabled()
    with pytest.raises(NoLanes):
        traced(torch.vmap(falling_back), torch.zeros(2, 4))
    assert torch.is_grad_enabled()
    with pytest.warns(UserWarning, match="performance drop"):
        torch.vmap(falling_back)(torch.zeros(2, 4))


# -------------------------------------------------------------------------------------------- grain


@pytest.mark.parametrize(
    "function",
    [
        torch.cosh,
        torch.exp,
        torch.tanh,
        torch.sigmoid,
        torch.log,
        lambda x: x**3,
        lambda x: x**0.5,
        lambda x: 2**x,
    ],
    ids=["cosh", "exp", "tanh", "sigmoid", "log", "cube", "root", "power of two"],
)
def test_an_operation_with_other_bits_outside_a_vector_register_wants_whole_registers(function):
    assert grain(traced(function)) == GRAIN == 32
    assert grain(traced(lambda x: function(x).sum())) == GRAIN


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1) * x / 3 - x,
        lambda x: x**2,
        lambda x: x.relu().sqrt().abs(),
        lambda x: torch.where(x > 0, x, -x).clamp(-1, 1),
        lambda x: x.view(-1, 1) @ x.view(1, -1),
        torch.linalg.vector_norm,
    ],
    ids=[
        "arithmetic",
        "square",
        "relu, root and magnitude",
        "choices",
        "a product of matrices",
        "a norm",
    ],
)
def test_an_operation_with_the_same_bits_everywhere_wants_none(function):
    assert grain(traced(function)) == 1


def test_the_hyperbolic_gradient_of_cosh_is_seen_although_its_name_stands_nowhere():
    assert (
        grain(traced(torch.vmap(torch.func.grad(lambda x: x.cosh().sum())), torch.zeros(2, 4)))
        == GRAIN
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("wdbc", 1), ("digits", 1), ("temporal-order", GRAIN), ("cosh", GRAIN)],
    ids=str,
)
def test_the_packaged_networks_of_relu_want_none_and_the_others_whole_registers(name, expected):
    registry.load_packaged()
    settings = {"length": 4} if name == "temporal-order" else {}
    work = registry.build("workload", name, settings)
    model = Model(work, torch.float64, "cpu")
    sampled = work.sample if hasattr(work, "sample") else None
    stream = trees.generator(name, 0, "batches")
    inputs, targets = (
        sampled(stream, 2) if sampled else (part[:2] for part in work.data(stream)["train"])
    )
    inputs = inputs.double()
    given = [torch.stack([part, part]) for part in (model.flat(model.module), inputs, targets)]
    assert grain(trace(torch.vmap(torch.func.grad_and_value(model.loss)), given, name)) == expected


def test_what_counts_as_exact_is_the_same_bits_at_any_place_of_a_tensor():
    """Every operation of one number in `EXACT`, whole against element by element, at lengths
    that fill no register.
    """
    singles = [
        torch.abs,
        torch.ceil,
        torch.floor,
        torch.neg,
        torch.reciprocal,
        torch.relu,
        torch.round,
        torch.sign,
        torch.sqrt,
    ]
    singles += [torch.square, torch.trunc, functional.leaky_relu, functional.hardtanh, torch.sgn]
    assert {function.__name__.rpartition(".")[2] for function in singles} <= program.EXACT
    for length in (1, 3, 37):
        numbers = drawn(length).abs() + 0.01
        for function in singles:
            apart = torch.cat([function(number.clone().view(1)) for number in numbers])
            assert torch.equal(function(numbers), apart), function


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (lambda x: x + 1, 1),
        (lambda x: (x + 1) * 2, 2),  # the sum, while its double is made
        (lambda x: (((x + 1) * 2) + 3) * 4, 2),  # each is freed when the next is there
        (lambda x: (x + 1) + (x + 2), 3),  # both, and their sum
        (lambda x: (x + 1) + (x + 2) + (x + 3), 3),  # the third comes when the first two are gone
        (lambda x: (x + 1, x + 2, x + 3), 3),  # what is returned stays
        (lambda x: (x + 1).mul_(2).sub_(1), 1),  # in place: no memory of its own
        (lambda x: (x + 1).mul_(2).sub_(1) + x, 2),
        (lambda x: torch.cat([x, x, x]), 3),
        (lambda x: (x.double(), x.to(torch.float16)), 2.5),  # elements of eight bytes and of two
    ],
    ids=[
        "one",
        "two",
        "a chain",
        "a tree",
        "a sum of three",
        "results",
        "in place",
        "in place, and on",
        "joined",
        "other dtypes",
    ],
)
def test_the_peak_of_a_program_is_what_one_counts_by_hand(function, tensors):
    assert peak_bytes(traced(function)) == tensors * BYTES


def test_inputs_and_views_of_them_take_no_memory():
    assert peak_bytes(traced(lambda x: x.view(2, -1).mT[:1])) == 0


def test_a_view_keeps_its_memory_in_use_as_long_as_it_is_read():
    """The first sum is read at the very end, through a view of a view, and so is there beside
    the other two.
    """

    def function(x):
        seen = (x + 1).view(2, -1)[:1]
        other = (x + 2) * 3
        return other.sum() + seen.sum()

    without = peak_bytes(traced(lambda x: ((x + 2) * 3).sum() + x[:500].sum()))
    assert without == 2 * BYTES
    assert peak_bytes(traced(function)) == without + BYTES


def test_what_is_written_in_place_is_in_use_until_its_last_reader():
    def function(x):
        held = (x + 1).mul_(2)
        other = (x + 2) * 3
        return held + other

    assert peak_bytes(traced(function)) == 3 * BYTES


def test_all_parts_of_a_result_count():
    """The largest of each row of a hundred, and where it stands: numbers of four and of eight
    bytes.
    """
    graph = traced(lambda x: torch.max(x, 1).values + 1, torch.zeros(10, 100))
    assert peak_bytes(graph) == 10 * 4 + 10 * 8 + 10 * 4


def test_a_program_of_more_lanes_takes_as_much_more_memory():
    def loss(weights, inputs):
        return (inputs @ weights.view(8, 8)).relu().square().mean()

    lane = torch.vmap(torch.func.grad_and_value(loss))
    two, six = (
        peak_bytes(traced(lane, torch.zeros(lanes, 64), torch.zeros(lanes, 5, 8)))
        for lanes in (2, 6)
    )
    assert six == 3 * two > 0


def test_the_peak_bounds_the_memory_of_the_tensors_that_are_alive():
    """Run node by node, each dropped after its last reader; what is then alive at one time is no
    more than was said.
    """
    from torch.fx import Interpreter

    with trees.seeded("program", 0, "weights"):
        net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    names = dict(net.named_parameters())

    def loss(weights, inputs):
        return torch.func.functional_call(net, weights, (inputs,)).square().mean()

    def step(inputs, *leaves):
        grads = torch.vmap(
            torch.func.grad(lambda tree, seen: loss(dict(zip(names, tree, strict=True)), seen))
        )(leaves, inputs)
        return [leaf - grad for leaf, grad in zip(leaves, grads, strict=True)]

    arguments = [
        torch.zeros(2, 7, 6),
        *(torch.stack([leaf.detach(), leaf.detach()]) for leaf in names.values()),
    ]
    graph = trace(step, arguments, "it")
    mine = {argument.untyped_storage().data_ptr() for argument in arguments}
    seen = []

    class Watched(Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            alive = {}
            for value in [*self.env.values(), result]:
                for tensor in value if isinstance(value, tuple | list) else [value]:
                    if (
                        isinstance(tensor, torch.Tensor)
                        and tensor.untyped_storage().data_ptr() not in mine
                    ):
                        alive[tensor.untyped_storage().data_ptr()] = (
                            tensor.untyped_storage().nbytes()
                        )
            seen.append(sum(alive.values()))
            return result

    Watched(graph).run(*arguments)
    said = peak_bytes(graph)
    assert max(seen) <= said <= 2 * max(seen)
