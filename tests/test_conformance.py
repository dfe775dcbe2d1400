"""Conformance finds what is planted and nothing else; what the house packs, and shows to
strangers, keeps every claim.
"""

from __future__ import annotations

import textwrap

import pytest
from strangers import EMA, SIGNUM

from clipbench import registry
from clipbench.conformance import CLAIMS, conform, lanes
from clipbench.errors import UsageError

registry.load_packaged()


@pytest.fixture
def judged(tmp_path):
    """Source of a stranger's file, kind and name → the claims it breaks, with what was said."""

    def judge(source, kind, name):
        (tmp_path / "stranger.py").write_text(textwrap.dedent(source))
        registry.load_file(tmp_path / "stranger.py")
        return {check.claim: check.detail for check in conform(kind, name) if not check.passed}

    return judge


@pytest.fixture
def two_arms(monkeypatch):
    """A workload trains in two arms: what is planted in it goes wrong in any."""
    every = lanes._arms
    monkeypatch.setattr(lanes, "_arms", lambda cls: every(cls)[::6])


IN_LANES = (
    "runs in lanes, or says why not",
    "a step in lanes is the loop's",
    "a run in lanes is the loop's",
    "a program of this machine is the loop",
)
# One workload of each structure: a module whose output is the loss, a convolution, a recurrence,
# attention, and a network with skip connections. The others have the structure of one of them.
LANES_OF = {"cosh", "digits", "temporal-order", "text", "phantom"}
# What one reaches depends on its objective, what the other reaches on the data set it is given.
JUDGED_BY_LOSS = {"label-noise", "medmnist"}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
)
def test_every_packaged_component_keeps_every_claim(kind, name, data_folder, whole, monkeypatch):
    """That lanes train a workload as the loop does is tested in two arms, and of a structure on
    one workload; with --whole in all arms, and on all workloads.
    """
    if kind == "workload" and not whole:
        every = lanes._arms
        monkeypatch.setattr(lanes, "_arms", lambda cls: every(cls)[::6])
        if name not in LANES_OF:
            kept = {claim: test for claim, test in CLAIMS[kind].items() if claim not in IN_LANES}
            monkeypatch.setitem(CLAIMS, kind, kept)
    checks = conform(kind, name)
    assert [check for check in checks if not check.passed] == []
    assert any(check.doubtful for check in checks) == (name in JUDGED_BY_LOSS)


def test_an_unknown_component_is_the_callers_mistake():
    with pytest.raises(UsageError, match='no clip "nrom"'):
        conform("clip", "nrom")


# -------------------------------------------------------------- the house's own pages for strangers

LINE = '''
import torch
from torch import nn
from clipbench import metrics, workload


def mean_error(output, target):
    return float((output - target).abs().mean())


@workload("line")
class Line:
    """A straight line through noisy points."""

    points: int = 40

    metric = mean_error
    target = 0.1
    reference_loss = 1.0

    def data(self, generator):
        x = torch.randn(3 * self.points, 2, generator=generator)
        y = x.sum(1, keepdim=True)
        splits = enumerate(("train", "validation", "test"))
        return {name: (x[at :: 3], y[at :: 3]) for at, name in splits}

    def model(self):
        return nn.Linear(2, 1)

    def loss(self, output, target):
        return nn.functional.mse_loss(output, target)
'''


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [(EMA, "clip", "ema"), (SIGNUM, "optimizer", "signum"), (LINE, "workload", "line")],
)
def test_a_strangers_page_keeps_every_claim(judged, source, kind, name):
    assert judged(source, kind, name) == {}


def test_what_is_not_there_is_not_asked_for(judged):
    judged(EMA, "clip", "ema")
    assert [check.claim for check in conform("clip", "ema")] == [
        "settings validate",
        "update returns a tree and a state",
        "shapes and dtypes kept",
        "clips at some threshold",
        "a larger threshold keeps no less",
        "treats a gradient and its opposite alike",
        "clips alike in another unit of the gradient",
        "never lengthens",
        "zero stays zero and finite",
        "turns no sign, though a norm overflows",
        "clips again after a gradient out of range",
        "hides no divergence",
        "no global random state",
        "no in-place change of its inputs",
        "update under vmap equals the loop",
        "works on a device",
    ]


# ----------------------------------------------------------------------------------- planted faults

FIRST = """
import torch
from torch import nn
from clipbench import NonNegative, Positive, Unit, clip, optimizer, trees


def shortened(grads, limit):
    return trees.scale_to(grads, limit, trees.norm(grads))

"""

# name: (claim that must break, words of its detail, class body)
CLIPS = {
    "flat and yet tensor by tensor": (
        "as one vector, updates as it does as named tensors",
        "from what it does",
        """
        flat = True
        limit: Positive
        def update(self, grads, state, params):
            factor = lambda g: torch.clamp(self.limit / (g.norm() + 1e-6), max=1.0)
            return trees.map(lambda g: g * factor(g), grads), state
    """,
    ),
    "a default outside its own range": (
        "settings validate",
        "default of `limit` is 0.0",
        """
        limit: Positive = 0.0
        def update(self, grads, state, params):
            return shortened(grads, self.limit), state
    """,
    ),
    "another dtype": (
        "shapes and dtypes kept",
        "float64 from",
        """
        limit: Positive
        def update(self, grads, state, params):
            return trees.map(torch.Tensor.double, shortened(grads, self.limit)), state
    """,
    ),
    "a state that grows": (
        "shapes and dtypes kept",
        "state['seen']",
        """
        limit: Positive
        def init(self, params):
            return {"seen": trees.zero(params).reshape(1)}
        def update(self, grads, state, params):
            return shortened(grads, self.limit), {"seen": torch.cat([state["seen"], state["seen"]])}
    """,
    ),
    "the tree alone": (
        "update returns a tree and a state",
        "not a pair of a tree and a state, with limit=1.0; not judged for it: 14 claims",
        """
        limit: Positive
        def update(self, grads, state, params):
            return shortened(grads, self.limit)
    """,
    ),
    "one that forgets to clip": (
        "clips at some threshold",
        "no gradient was changed at any threshold: limit = 1.0, 0.01, 0.1, 10.0, inf",
        """
        limit: Positive
        def update(self, grads, state, params):
            shortened(grads, self.limit)
            return grads, state
    """,
    ),
    "a number in the threshold's place": (
        "clips at some threshold",
        "whatever the threshold, limit, is",
        """
        limit: Positive
        def update(self, grads, state, params):
            return trees.scale(grads, 0.5), state
    """,
    ),
    "a threshold turned round": (
        "a larger threshold keeps no less",
        "at threshold 0.01, and with",
        """
        limit: Positive
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            return trees.scale_to(grads, norm**2 / (norm + self.limit), norm), state
    """,
    ),
    "a running threshold turned round": (
        "a larger threshold keeps no less",
        "at threshold",
        """
        ratio: Positive = 1.0
        def init(self, params):
            return {"mean": trees.zero(params)}
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            seen = torch.where(norm.isfinite(), norm, state["mean"])
            mean = torch.where(state["mean"] == 0, seen, 0.9 * state["mean"] + 0.1 * seen)
            return trees.scale_to(grads, state["mean"] / self.ratio, norm), {"mean": mean}
    """,
    ),
    "one side of a value": (
        "treats a gradient and its opposite alike",
        "one sign is clipped otherwise",
        """
        limit: Positive
        def update(self, grads, state, params):
            limit = trees.like(self.limit, grads)
            return trees.map(lambda g: torch.clamp(g, max=limit), grads), state
    """,
    ),
    "the square of a norm": (
        "clips alike in another unit of the gradient",
        "64 times as large: it is compared with a square",
        """
        limit: Positive
        def update(self, grads, state, params):
            return trees.scale_to(grads, self.limit, trees.norm(grads) ** 2), state
    """,
    ),
    "one that lengthens": (
        "never lengthens",
        "a gradient of norm",
        """
        limit: Positive
        def update(self, grads, state, params):
            return trees.scale(shortened(grads, self.limit), 1.001), state
    """,
    ),
    "one that lengthens the short": (
        "never lengthens",
        "a gradient of norm",
        """
        limit: Positive
        def update(self, grads, state, params):
            factor = self.limit / trees.norm(grads).clamp(min=1e-9)
            return trees.scale(grads, torch.clamp(factor, min=0.0, max=1.05)), state
    """,
    ),
    "NaN for zero": (
        "zero stays zero and finite",
        "is not finite",
        """
        limit: Positive
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            factor = torch.clamp(self.limit / norm * (norm / norm), max=1.0)
            return trees.scale(grads, factor), state
    """,
    ),
    "a floor under every element": (
        "zero stays zero and finite",
        "is not zero",
        """
        limit: Positive
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            filled = lambda g: torch.where(norm == 0, torch.full_like(g, 1e-30), g)
            return trees.map(filled, shortened(grads, self.limit)), state
    """,
    ),
    "a mark for a norm that is not finite": (
        "turns no sign, though a norm overflows",
        "whose norm is infinite",
        """
        limit: Positive
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            norm = torch.where(norm == torch.inf, -torch.ones_like(norm), norm)
            return trees.scale(grads, torch.clamp(self.limit / (norm + 1e-6), max=1.0)), state
    """,
    ),
    "a mean that overflows for good": (
        "clips again after a gradient out of range",
        "that overflows it clips none of 20",
        """
        limit: Positive
        def init(self, params):
            return {"mean": trees.zero(params)}
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            mean = 0.9 * state["mean"] + 0.1 * norm
            kept = {"mean": torch.where(norm.isnan(), state["mean"], mean)}
            return trees.scale_to(grads, self.limit * mean, norm), kept
    """,
    ),
    "a memory of NaN": (
        "clips again after a gradient out of range",
        "finite ones come back that are not",
        """
        limit: Positive
        def init(self, params):
            return {"share": trees.zero(params) + 1}
        def update(self, grads, state, params):
            share = state["share"] + 0 * trees.norm(grads)
            return trees.scale(shortened(grads, self.limit), share), {"share": share}
    """,
    ),
    "one that stays at zero": (
        "clips again after a gradient out of range",
        "all come back as zeros",
        """
        limit: Positive
        def init(self, params):
            return {"share": trees.zero(params) + 1}
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            share = torch.where(norm == torch.inf, 0.0, state["share"])
            scaled = trees.scale(grads, share)
            return trees.scale_to(scaled, self.limit, norm * share), {"share": share}
    """,
    ),
    "NaN made zero": (
        "hides no divergence",
        "an element of nan comes back finite, that element as 0",
        """
        limit: Positive
        def update(self, grads, state, params):
            return shortened(trees.map(torch.nan_to_num, grads), self.limit), state
    """,
    ),
    "a step left out": (
        "hides no divergence",
        "comes back finite, that element as 0",
        """
        limit: Positive
        def update(self, grads, state, params):
            norm = trees.norm(grads)
            kept = lambda g: torch.where(norm.isfinite(), g, torch.zeros_like(g))
            return trees.map(kept, shortened(grads, self.limit)), state
    """,
    ),
    "global random state": (
        "no global random state",
        "drew from torch's",
        """
        limit: Positive
        def update(self, grads, state, params):
            torch.rand(())
            return shortened(grads, self.limit), state
    """,
    ),
    "gradients changed in place": (
        "no in-place change of its inputs",
        "update changed its ['grads']['conv.weight']",
        """
        limit: Positive
        def update(self, grads, state, params):
            short = shortened(grads, self.limit)
            for name, grad in grads.items():
                grad.copy_(short[name])
            return short, state
    """,
    ),
    "a state changed in place": (
        "no in-place change of its inputs",
        "update changed its ['state']['step']",
        """
        limit: Positive
        def init(self, params):
            return {"step": trees.zero(params)}
        def update(self, grads, state, params):
            state["step"] += 1
            return shortened(grads, self.limit), state
    """,
    ),
    "a branch on the threshold": (
        "update under vmap equals the loop",
        "RuntimeError",
        """
        limit: Positive
        def update(self, grads, state, params):
            return (grads if self.limit > 5 else shortened(grads, self.limit)), state
    """,
    ),
    "a branch on another setting": (
        "update under vmap equals the loop",
        "",
        """
        limit: Positive
        slack: NonNegative = 0.0
        def update(self, grads, state, params):
            return (shortened(grads, self.limit) if self.slack else grads), state
    """,
    ),
    "other numbers in lanes": (
        "update under vmap equals the loop",
        "from the loop's",
        """
        limit: Positive
        def update(self, grads, state, params):
            more = 1 + 1e-8 * isinstance(self.limit, torch.Tensor)
            return shortened(grads, self.limit * more), state
    """,
    ),
    "an operation without lanes": (
        "update under vmap equals the loop",
        "performance drop",
        """
        limit: Positive
        def update(self, grads, state, params):
            torch.quantile(trees.flatten(grads), 0.5)
            return shortened(grads, self.limit), state
    """,
    ),
    "another in-place path": (
        "clip_ equals update",
        "from update's",
        """
        limit: Positive
        def update(self, grads, state, params):
            return shortened(grads, self.limit), state
        def clip_(self, params):
            nn.utils.clip_grad_value_(params, self.limit)
    """,
    ),
    "a size of many numbers": (
        "size is one number",
        "a tensor of shape (4,)",
        """
        limit: Positive
        def update(self, grads, state, params):
            return shortened(grads, self.limit), state
        def size(self, grads):
            return torch.stack([grad.norm() for grad in grads.values()])
    """,
    ),
    "a state born on the CPU": (
        "works on a device",
        "tensors on cpu and cuda:0",
        """
        limit: Positive
        def init(self, params):
            return {name: torch.zeros(param.shape) for name, param in params.items()}
        def update(self, grads, state, params):
            cut = shortened(grads, self.limit)
            return trees.map(lambda g, s: g + 0 * s.to(g.dtype), cut, state), state
    """,
    ),
    "an in-place path with a number of the CPU": (
        "works on a device",
        "tensors on cpu and cuda:0",
        """
        limit: Positive
        def update(self, grads, state, params):
            return shortened(grads, self.limit), state
        def clip_(self, params):
            cut = shortened({str(n): p.grad for n, p in enumerate(params)}, self.limit)
            for param, grad in zip(params, cut.values()):
                param.grad = grad * torch.ones(param.shape)
    """,
    ),
}

OPTIMIZERS = {
    "flat and yet tensor by tensor": (
        "as one vector, updates as it does as named tensors",
        "from what it does",
        """
        flat = True
        def init(self, params):
            return {}
        def update(self, grads, state, params):
            return trees.map(lambda g: g / (1 + g.norm()), grads), state
    """,
    ),
    "a direction of another shape": (
        "shapes and dtypes kept",
        "became (1, 4) torch.float32 from (4,)",
        """
        def init(self, params):
            return {}
        def update(self, grads, state, params):
            return grads | {"conv.bias": grads["conv.bias"][None]}, state
    """,
    ),
    "0/0 on a zero gradient": (
        "finite on a zero gradient",
        "is not finite",
        """
        def init(self, params):
            return {}
        def update(self, grads, state, params):
            return trees.map(lambda g: g / g.abs(), grads), state
    """,
    ),
    "global random state": (
        "no global random state",
        "drew from torch's",
        """
        def init(self, params):
            return {"start": torch.rand(()) * 0}
        def update(self, grads, state, params):
            return grads, state
    """,
    ),
    "weights changed in place": (
        "no in-place change of its inputs",
        "update changed its ['params']",
        """
        def init(self, params):
            return {}
        def update(self, grads, state, params):
            for param in params.values():
                param.mul_(0.5)
            return grads, state
    """,
    ),
    "weights changed by init": (
        "no in-place change of its inputs",
        "init changed its ['params']",
        """
        def init(self, params):
            trees.map(torch.Tensor.zero_, params)
            return {}
        def update(self, grads, state, params):
            return grads, state
    """,
    ),
    "a branch on a setting": (
        "update under vmap equals the loop",
        "RuntimeError",
        """
        decay: NonNegative = 0.0
        def init(self, params):
            return {}
        def update(self, grads, state, params):
            if self.decay != 0:
                grads = trees.map(lambda g, p: g + self.decay * p, grads, params)
            return grads, state
    """,
    ),
    "another object in torch": (
        "torch equals update",
        "after 2 steps a weight is",
        """
        momentum: Unit = 0.9
        def init(self, params):
            return {"sum": trees.zeros_like(params)}
        def update(self, grads, state, params):
            total = trees.map(lambda b, g: self.momentum * b + g, state["sum"], grads)
            return total, {"sum": total}
        def torch(self, params, lr):
            return torch.optim.SGD(params, lr=lr, momentum=self.momentum, dampening=0.1)
    """,
    ),
    "a setting that torch is not given": (
        "torch equals update",
        "with decay=0.01",
        """
        decay: NonNegative = 0.0
        def init(self, params):
            return {}
        def update(self, grads, state, params):
            return trees.map(lambda g, p: g + self.decay * p, grads, params), state
        def torch(self, params, lr):
            return torch.optim.SGD(params, lr=lr)
    """,
    ),
    "a sign table of the CPU": (
        "works on a device",
        "tensors on cpu and cuda:0",
        """
        def init(self, params):
            return {}
        def update(self, grads, state, params):
            return trees.map(lambda g: g * torch.ones(g.shape, dtype=g.dtype), grads), state
    """,
    ),
}


@pytest.mark.parametrize(("claim", "words", "body"), CLIPS.values(), ids=CLIPS)
def test_a_fault_in_a_clip_breaks_its_claim_and_no_other(judged, claim, words, body):
    broken = judged(
        FIRST
        + '@clip("planted")\nclass Planted:\n'
        + textwrap.indent(textwrap.dedent(body), "    "),
        "clip",
        "planted",
    )
    assert list(broken) == [claim], broken
    assert words in broken[claim]


@pytest.mark.parametrize(("claim", "words", "body"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_fault_in_an_optimizer_breaks_its_claim_and_no_other(judged, claim, words, body):
    source = (
        FIRST
        + '@optimizer("planted")\nclass Planted:\n'
        + textwrap.indent(textwrap.dedent(body), "    ")
    )
    broken = judged(source, "optimizer", "planted")
    assert list(broken) == [claim], broken
    assert words in broken[claim]


def test_a_clip_that_may_lengthen_says_so(judged):
    body = """
        lengthens = True
        size_wanted: Positive
        def update(self, grads, state, params):
            return trees.scale(shortened(grads, self.size_wanted), 2.0), state
    """
    source = (
        FIRST
        + '@clip("planted")\nclass Planted:\n'
        + textwrap.indent(textwrap.dedent(body), "    ")
    )
    assert judged(source, "clip", "planted") == {}
    assert {check.claim: check.detail for check in conform("clip", "planted")}[
        "never lengthens"
    ] == "it may, and says so"


def test_an_optimizer_with_torchs_object_only_is_told_that_it_has_no_lanes(judged):
    body = """
        def torch(self, params, lr):
            return torch.optim.Adagrad(params, lr=lr)
    """
    source = (
        FIRST
        + '@optimizer("planted")\nclass Planted:\n'
        + textwrap.indent(textwrap.dedent(body), "    ")
    )
    assert judged(source, "optimizer", "planted") == {}
    details = {check.claim: check.detail for check in conform("optimizer", "planted")}
    assert details["torch equals update"] == "it has no update, so it runs in the loop only"


RETURNS = {
    "nothing": ("return None", "update returned a NoneType, not a pair of a tree and a state"),
    "the tree alone": ("return grads", "update returned a dict of 'conv.weight', 'conv.bias'"),
    "a list of tensors": (
        "return list(grads.values()), state",
        "update returned a list, not a tree",
    ),
    "other names": (
        "return {'w': grads['scale']}, state",
        "update returned a dict of 'w', not a tree of the parameters' names",
    ),
    "numbers": (
        "return {name: 0.0 for name in grads}, state",
        "update['conv.weight'] is a float, not a tensor",
    ),
    "a state that is none": ("return grads, None", "state is a NoneType, not a tensor"),
    "an exception": ("raise KeyError('moment')", "KeyError: 'moment'"),
}


@pytest.mark.parametrize("kind", ["clip", "optimizer"])
@pytest.mark.parametrize(("statement", "sentence"), RETURNS.values(), ids=RETURNS)
def test_whatever_update_returns_is_judged_and_never_a_crash(judged, kind, statement, sentence):
    source = (
        f'{FIRST}@{kind}("planted")\nclass Planted:\n    def update(self, grads, state, '
        f"params):\n        {statement}\n"
    )
    broken = judged(source, kind, "planted")
    (detail,) = broken.values()
    assert sentence in detail
    assert list(broken) == ["update returns a tree and a state"]
    assert "not judged" in detail


def test_a_setting_without_an_example_is_asked_to_have_a_default(judged):
    body = "path: str\n    def update(self, grads, state, params):\n        return grads, state\n"
    source = f'{FIRST}@clip("planted")\nclass Planted:\n    {body}'
    broken = judged(source, "clip", "planted")
    assert broken == {
        "settings validate": "there is no example of `path` (text) to try; give it a default; "
        "not judged for it: 15 claims"
    }


WARNED = {
    "no threshold": (
        "settings validate",
        "such as `limit: Positive = 1.0`; `limit` has none",
        """
        limit = 1.0
        def update(self, grads, state, params):
            return shortened(grads, self.limit), state
    """,
    ),
    "a norm that the host reads": (
        "works on a device",
        "at every step the host waits for the device in aten._local_scalar_dense.default, at ",
        """
        limit: Positive
        def update(self, grads, state, params):
            return shortened(grads, self.limit), state
        def clip_(self, params):
            named = {str(n): p.grad for n, p in enumerate(params)}
            if float(trees.norm(named)) > self.limit:
                for param, grad in zip(params, shortened(named, self.limit).values()):
                    param.grad = grad
    """,
    ),
    "a constant in the code": (
        "clips alike in another unit of the gradient",
        "is there a constant in the code?",
        """
        limit: Positive
        def update(self, grads, state, params):
            return shortened(grads, self.limit + 0.5), state
    """,
    ),
}


@pytest.mark.parametrize(("claim", "words", "body"), WARNED.values(), ids=WARNED)
def test_what_may_mislead_of_a_clip_is_a_warning(judged, claim, words, body):
    source = (
        FIRST + '@clip("planted")\nclass Planted:\n' + textwrap.dedent(body).replace("\n", "\n    ")
    )
    assert judged(source, "clip", "planted") == {}
    (check,) = [check for check in conform("clip", "planted") if check.doubtful]
    assert check.claim == claim
    assert words in check.detail


def test_a_threshold_may_be_a_square_if_its_size_is_one(judged):
    body = """
        energy: Positive
        def update(self, grads, state, params):
            return trees.scale_to(grads, self.energy ** 0.5, trees.norm(grads)), state
        def size(self, grads):
            return trees.norm(grads) ** 2
    """
    source = (
        FIRST + '@clip("planted")\nclass Planted:\n' + textwrap.dedent(body).replace("\n", "\n    ")
    )
    assert judged(source, "clip", "planted") == {}
    assert not any(check.doubtful for check in conform("clip", "planted"))


MANY_OTHERS = """def sample(self, generator, batch):
        points = torch.randn(batch, 2, generator=generator)
        return points, points.sum(1, keepdim=True)

    def samples(self, generator, batch, count):
        points = torch.rand(count, batch, 2, generator=generator)
        return points, points.sum(-1, keepdim=True)

    def model"""
OWN_LUCK = """net = nn.Linear(2, 1)
        own = torch.Generator()
        own.seed()
        nn.init.normal_(net.weight, generator=own)
        return net"""

ONE_START = """net = nn.Linear(2, 1)
        nn.init.ones_(net.weight)
        nn.init.ones_(net.bias)
        return net"""

# A module that counts its calls in Python: a trace of it does not.
TIRING = """class Tiring(nn.Linear):
            calls = 0

            def forward(self, x):
                self.calls += 1
                return super().forward(x) * (2.0 if self.calls > {} else 1.0)

        return Tiring(2, 1)"""

# A module that is another where it is traced alone, and not among other lanes.
LONELY = """class Lonely(nn.Linear):
            def forward(self, x):
                among = torch._C._functorch.maybe_current_level() or 0
                return super().forward(x) * (1.5 if among == 1 else 1.0)

        return Lonely(2, 1)"""
NATIVE = "a program of this machine is the loop"

# fault: (claim, words, what to replace in LINE, by what)
WORKLOADS = {
    "another alone": (
        NATIVE,
        ", step 0 is ",
        "return nn.Linear(2, 1)",
        LONELY,
    ),
    "tired after six steps": (
        "a step in lanes is the loop's",
        ", step 6 is ",
        "return nn.Linear(2, 1)",
        TIRING.format(6),
    ),
    "tired after fifty steps": (
        "a run in lanes is the loop's",
        "100 steps end",
        "return nn.Linear(2, 1)",
        TIRING.format(50),
    ),
    "no model": ("hooks present", "there is no `model`", "def model", "def net"),
    "no test split": (
        "splits present, inputs and targets alike in number",
        'no split "test"',
        '"test")',
        '"spare")',
    ),
    "targets missing": (
        "splits present, inputs and targets alike in number",
        "40 inputs and 20 targets",
        "y[at :: 3]) for",
        "y[at :: 6]) for",
    ),
    "an infinite start": (
        "loss and gradient finite at the start",
        "the first loss in torch.float32",
        "mse_loss(output, target)",
        "mse_loss(output / 0, target)",
    ),
    "a loss for each example": (
        "loss and gradient finite at the start",
        "`loss` returned 4 numbers, of shape (4, 1), and must return one",
        "mse_loss(output, target)",
        "mse_loss(output, target, reduction='none')",
    ),
    "a loss in one dtype": (
        "loss and gradient finite at the start",
        "in torch.float64",
        "mse_loss(output, target)",
        "mse_loss(output.float(), target.float())",
    ),
    "a NaN in the validation split": (
        "every split finite, and the first loss on it",
        'split "validation" has inputs that are not finite: 2 of 80 numbers',
        "y = x.sum(1, keepdim=True)",
        "x[1] = float('nan')\n        y = x.sum(1, keepdim=True)",
    ),
    "a test split whose loss overflows": (
        "every split finite, and the first loss on it",
        'on split "test" the untrained module has a loss of inf',
        "y = x.sum(1, keepdim=True)",
        "x[2] = 3e37\n        y = x.sum(1, keepdim=True)",
    ),
    "a weight that is not the loss's": (
        "a batch in parts adds up to the whole, or says why not",
        "no mean over examples by its `weight`",
        "def model",
        "def weight(self, targets):\n        return targets.abs().sum()\n\n    def model",
    ),
    "other batches if many are drawn": (
        "batches drawn together are those drawn one by one",
        "`samples` draws other inputs than `sample`",
        "def model",
        MANY_OTHERS,
    ),
    "luck of its own": (
        "the seed decides weights and batches",
        "the same seed gave another weight",
        "return nn.Linear(2, 1)",
        OWN_LUCK,
    ),
    "global random state": (
        "no global random state",
        "drew from torch's",
        "y = x.sum(1, keepdim=True)",
        "y = x.sum(1, keepdim=True) + 0 * torch.rand(1)",
    ),
    "a random loss": (
        "no global random state",
        "drew from torch's",
        "mse_loss(output, target)",
        "mse_loss(output + 0 * torch.rand(1).to(output), target)",
    ),
    "a metric of NaN": (
        "the metric is a number",
        "it is nan",
        "float((output",
        "float('nan') * float((output",
    ),
    "no reference": (
        "reference_loss declared",
        "there is no `reference_loss`",
        "reference_loss = 1.0",
        "",
    ),
    "a reference below the optimum": (
        "reference_loss declared",
        "`reference_loss` is 1.0, and must be above 2.0",
        "target = 0.1",
        "optimum = 2.0",
    ),
    "what chance has, and not the target": (
        "runs are judged by the metric, or it says why not",
        "of `chance` and `target_metric` one is there without the other",
        "target = 0.1",
        "chance = 0.5",
    ),
    "a target that chance meets": (
        "runs are judged by the metric, or it says why not",
        "`target_metric` is 0.5, and must be a better",
        "target = 0.1",
        "chance, target_metric = 0.5, 0.5",
    ),
    "a loss with a tensor of the CPU": (
        "works on a device",
        "tensors on cpu and cuda:0 in aten.mul.Tensor, at stranger.py, line",
        "mse_loss(output, target)",
        "mse_loss(output, target * torch.ones(1))",
    ),
    "a target in words": (
        "reference_loss declared",
        "`target` is 'low', and must be a number",
        "target = 0.1",
        "target = 'low'",
    ),
}


@pytest.mark.parametrize(("claim", "words", "old", "new"), WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.usefixtures("two_arms")
def test_a_fault_in_a_workload_breaks_its_claim(judged, claim, words, old, new):
    assert LINE.count(old) == 1
    broken = judged(LINE.replace(old, new), "workload", "line")
    assert words in broken[claim]
    # without a model, a split or a finite loss other claims have nothing to look at, and a run is
    # made of steps
    alone = [claim, NATIVE] if claim.startswith("a run in lanes") else [claim]
    assert list(broken) == alone or claim.startswith(
        ("hooks", "splits", "loss and gradient", "a step in lanes")
    ), broken


LANES = {
    "dropout": "nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1))",
    "a branch on a value": "Branching(2, 1)",
}


@pytest.mark.parametrize("model", LANES.values(), ids=LANES)
def test_a_module_without_lanes_says_why_and_keeps_the_claim(judged, model):
    branching = textwrap.dedent("""
        class Branching(nn.Linear):
            def forward(self, x):
                return super().forward(x) if x.sum() > 0 else super().forward(x)
    """)
    assert judged(LINE.replace("nn.Linear(2, 1)", model) + branching, "workload", "line") == {}
    detail = {check.claim: check.detail for check in conform("workload", "line")}[
        "runs in lanes, or says why not"
    ]
    assert detail.endswith(": it runs in the loop")


@pytest.mark.usefixtures("two_arms")
def test_a_workload_without_randomness_says_that_it_has_one_seed(judged):
    still = LINE.replace("data(self, generator)", "data(self)").replace(
        "return nn.Linear(2, 1)", ONE_START
    )
    still = still.replace(
        "torch.randn(3 * self.points, 2, generator=generator)", "torch.ones(3 * self.points, 2)"
    )
    assert judged(still, "workload", "line") == {}
    details = {check.claim: check.detail for check in conform("workload", "line")}
    assert (
        details["the seed decides weights and batches"]
        == "no randomness: every seed is the same run, n = 1"
    )


@pytest.mark.usefixtures("two_arms")
def test_engines_may_part_if_rounding_alone_parts_the_loop_from_itself(judged):
    """A loss so steep that a difference in the last bit grows to any size within some steps."""
    assert (
        judged(
            LINE.replace("mse_loss(output, target)", "mse_loss((300 * output).sin(), target)"),
            "workload",
            "line",
        )
        == {}
    )
    details = {check.claim: check.detail for check in conform("workload", "line")}
    assert "rounding alone parts the loop from itself" in details["a run in lanes is the loop's"]


SCALES = {
    "neither": ("", True),
    "both": ("chance, target_metric = 0.8, 0.1", False),
    "a function": ("reference_loss = None", False),
    "no least value": ("unbounded = True", False),
}


@pytest.mark.parametrize(("words", "doubtful"), SCALES.values(), ids=SCALES)
def test_a_metric_without_chance_is_a_warning_that_says_what_to_write(
    judged, monkeypatch, words, doubtful
):
    """Of a workload with a constant prediction alone; lower is better here."""
    claim = "runs are judged by the metric, or it says why not"
    monkeypatch.setitem(CLAIMS, "workload", {claim: CLAIMS["workload"][claim]})
    source = LINE.replace("reference_loss = 1.0", f"reference_loss = 1.0\n    {words}").replace(
        "@workload", "mean_error.higher_is_better = False\n\n\n@workload"
    )
    assert judged(source, "workload", "line") == {}
    (check,) = conform("workload", "line")
    assert check.doubtful == doubtful
    assert ("write `chance = …`, the mean error of" in check.detail) == doubtful


def test_every_planted_claim_is_one_of_the_battery_and_every_claim_is_planted():
    planted = {
        "clip": {claim for claim, *_ in CLIPS.values()},
        "optimizer": {claim for claim, *_ in OPTIMIZERS.values()}
        | {"settings validate", "update returns a tree and a state"},
        "workload": {claim for claim, *_ in WORKLOADS.values()}
        | {"settings validate", "runs in lanes, or says why not"},
    }
    assert planted == {kind: set(claims) for kind, claims in CLAIMS.items()}
