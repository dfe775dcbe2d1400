"""The packaged rules against ``torch.optim`` in float64, and the two ways a stranger's optimizer
enters the loop.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipbench import optimizer, optimizers, registry, trees
from clipbench.errors import UsageError
from clipbench.optimizers import Rule, TorchOptimizer, torch_class, torch_optimizer, validate_torch

SHAPES = {"w": (4, 3), "b": (4,), "scale": ()}
STEPS = 50

share = st.one_of(st.just(0.0), st.floats(0, 0.999))
decay = st.one_of(st.just(0.0), st.floats(0, 0.5))
eps = st.floats(1e-12, 0.1)
RULES = {
    optimizers.SGD: st.fixed_dictionaries({"weight_decay": decay}),
    optimizers.Momentum: st.fixed_dictionaries({"momentum": share, "weight_decay": decay}),
    optimizers.Nesterov: st.fixed_dictionaries({"momentum": share, "weight_decay": decay}),
    optimizers.RMSprop: st.fixed_dictionaries({"alpha": share, "eps": eps, "weight_decay": decay}),
    optimizers.Adam: st.fixed_dictionaries(
        {"beta1": share, "beta2": share, "eps": eps, "weight_decay": decay}
    ),
    optimizers.AdamW: st.fixed_dictionaries(
        {"beta1": share, "beta2": share, "eps": eps, "weight_decay": decay}
    ),
}
each_rule = pytest.mark.parametrize("cls", RULES, ids=lambda cls: cls.name)


def drawn(source, size=1.0, dtype=torch.float64, lanes=()):
    shapes = {name: (*lanes, *shape) for name, shape in SHAPES.items()}
    return {
        name: (size * torch.randn(shape, generator=source, dtype=torch.float64)).to(dtype)
        for name, shape in shapes.items()
    }


def apart(params, component, source, lr, dtype=torch.float64, steps=STEPS, foreach=None):
    """How far rule and torch object are from each other after each step, at most, relative to
    the largest weight.
    """
    stepped = {name: torch.nn.Parameter(leaf.clone()) for name, leaf in params.items()}
    stepper, state, worst = component.torch(list(stepped.values()), lr), component.init(params), 0.0
    for group in stepper.param_groups:
        group["foreach"] = foreach
    for _ in range(steps):
        grads = drawn(source, 10.0 ** float(4 * torch.rand((), generator=source) - 2), dtype)
        for name, param in stepped.items():
            param.grad = grads[name].clone()
        stepper.step()
        direction, state = component.update(grads, state, params)
        params = trees.map(lambda param, along: param - lr * along, params, direction)
        gap = max(float((stepped[name].detach() - params[name]).abs().max()) for name in params)
        worst = max(worst, gap / float(trees.norm(params, torch.inf)))
    return worst


# ------------------------------------------------------------------------------------ the witnesses


@each_rule
def test_a_rule_with_any_settings_is_torchs_over_fifty_steps(cls):
    @settings(max_examples=12)
    @given(RULES[cls], st.integers(0, 2**31), st.floats(1e-4, 0.3), st.booleans())
    def holds(given_settings, seed, lr, foreach):
        source = torch.Generator().manual_seed(seed)
        assert apart(drawn(source), cls(**given_settings), source, lr, foreach=foreach) < 1e-12

    holds()


@each_rule
def test_at_its_defaults_a_rule_is_torchs_default_class(cls):
    component = cls()
    (group,) = component.torch([torch.nn.Parameter(torch.zeros(2))], 0.1).param_groups
    for name in registry.fields(cls):
        value = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False)).get(
            name, group.get(name)
        )
        assert value == getattr(component, name)
    assert group["lr"] == 0.1
    assert group.get("nesterov", False) is (cls is optimizers.Nesterov)
    assert not group["foreach"]
    assert not group["maximize"]


@each_rule
def test_in_float32_the_first_steps_are_torchs_too(cls):
    """1 − .999ᵗ in float32 is 2e-5 off: a rule that counts in float32 fails here. From 0, so
    that the steps are all there is.
    """
    source = torch.Generator().manual_seed(1)
    still = trees.zeros_like(drawn(source, dtype=torch.float32))
    assert apart(still, cls(), source, 1e-2, torch.float32, steps=5) < 1e-6


@each_rule
def test_lanes_with_settings_of_their_own_are_the_plain_calls(cls):
    source = torch.Generator().manual_seed(2)
    default = cls()
    lanes = {
        name: torch.tensor(
            [getattr(default, name), 0.5, 0.0 if name != "eps" else 1e-3], dtype=torch.float64
        )
        for name in registry.lane_fields(cls)
    }
    assert set(lanes) == set(registry.fields(cls))
    params = drawn(source, lanes=(3,))
    alone = [
        cls(**{name: float(values[lane]) for name, values in lanes.items()}) for lane in range(3)
    ]
    states = [
        component.init({name: leaf[lane] for name, leaf in params.items()})
        for lane, component in enumerate(alone)
    ]
    together = torch.vmap(cls().init)(params)
    update = torch.vmap(
        lambda given, grads, state, weights: cls(**given).update(grads, state, weights)
    )
    for _ in range(5):
        grads = drawn(source, lanes=(3,))
        direction, together = update(lanes, grads, together, params)
        for lane, component in enumerate(alone):
            at = {name: leaf[lane] for name, leaf in params.items()}
            wanted, states[lane] = component.update(
                {name: leaf[lane] for name, leaf in grads.items()}, states[lane], at
            )
            for name in SHAPES:
                torch.testing.assert_close(
                    direction[name][lane], wanted[name], rtol=1e-12, atol=1e-14
                )


def test_the_first_step_of_rmsprop_is_ten_times_lr():
    component, params = optimizers.RMSprop(), {"w": torch.tensor([1.0, -1.0], dtype=torch.float64)}
    direction, _ = component.update(
        {"w": torch.tensor([5.0, -0.02], dtype=torch.float64)}, component.init(params), params
    )
    assert direction["w"].tolist() == pytest.approx([10.0, -10.0], rel=1e-5)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(optimizers.Adam, "beta1"), (optimizers.AdamW, "beta2"), (optimizers.Momentum, "momentum")],
)
def test_a_share_of_one_is_refused(cls, name):
    with pytest.raises(
        UsageError,
        match=f"`{name}` is 1.0, and must be a number from 0 up to, but not including, 1",
    ):
        registry.validated(cls, {name: 1.0}, "here")


# -------------------------------------------------------------------------------- a stranger's rule


@pytest.fixture
def signum():
    @optimizer("signum")
    class Signum:
        beta: float = 0.9

        def init(self, params):
            return {"mean": trees.zeros_like(params)}

        def update(self, grads, state, params):
            mean = trees.map(lambda m, g: self.beta * m + (1 - self.beta) * g, state["mean"], grads)
            return trees.map(torch.sign, mean), {"mean": mean}

    return Signum()


def module():
    return (
        torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)).double().requires_grad_()
    )


def descend(stepper, some, steps):
    source = torch.Generator().manual_seed(3)
    for _ in range(steps):
        stepper.zero_grad()
        some(torch.randn(4, 3, generator=source, dtype=torch.float64)).square().mean().backward()
        stepper.step()
    return torch.cat([param.detach().flatten() for param in some.parameters()])


def test_a_pure_rule_runs_in_the_loop_as_an_optimizer():
    with trees.seeded("test", 0, "weights"):
        some, twin = module(), module()
    twin.load_state_dict(some.state_dict())
    by_rule = descend(Rule(optimizers.Adam(), some.named_parameters(), 0.1), some, 20)
    torch.testing.assert_close(
        by_rule, descend(torch.optim.Adam(twin.parameters(), 0.1), twin, 20), rtol=1e-10, atol=1e-12
    )


def test_the_loop_steps_the_components_own_object_or_its_rule(signum):
    with trees.seeded("test", 0, "weights"):
        some = module()
    named = dict(some.named_parameters())
    assert (
        type(torch_optimizer(optimizers.SGD(), list(named.values()), 0.1, named)) is torch.optim.SGD
    )
    for given_as in (named, some.named_parameters()):
        stepper = torch_optimizer(signum, list(named.values()), 0.1, given_as)
        assert isinstance(stepper, Rule)
    before = some[0].weight.detach().clone()
    some(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    stepper.step()
    torch.testing.assert_close(before - some[0].weight.detach(), 0.1 * some[0].weight.grad.sign())


def test_a_rule_obeys_a_changed_lr_and_a_closure(signum):
    param = torch.nn.Parameter(torch.tensor([5.0]))
    stepper = Rule(signum, [("x", param)], 0.5)
    stepper.param_groups[0]["lr"] = 2.0

    def closure():
        stepper.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert stepper.step(closure).item() == 25.0
    assert param.item() == 3.0


def test_a_parameter_without_a_gradient_counts_as_zero(signum):
    used, unused = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    stepper = Rule(signum, [("used", used), ("unused", unused)], 0.5)
    used.grad = torch.tensor([1.0])
    stepper.step()
    assert (used.item(), unused.item()) == (0.5, 1.0)


def test_a_rules_memory_travels_in_its_state_dict():
    with trees.seeded("test", 0, "weights"):
        some = module()
    stepper = Rule(optimizers.Adam(), some.named_parameters(), 0.1)
    descend(stepper, some, 3)
    twin = copy.deepcopy(some)
    resumed = Rule(optimizers.Adam(), twin.named_parameters(), 0.1)
    resumed.load_state_dict(copy.deepcopy(stepper.state_dict()))
    assert torch.equal(descend(stepper, some, 3), descend(resumed, twin, 3))


# ------------------------------------------------------------------------- any class of torch.optim


@pytest.mark.parametrize(
    "path", [path for path in optimizers.loop._torch_names() if not path.endswith("LBFGS")]
)
def test_every_class_of_torch_validates_at_its_defaults(path):
    assert validate_torch(path, {}, "here") == {}
    built = TorchOptimizer(path, {}).torch([torch.nn.Parameter(torch.zeros(2, 2))], 0.25)
    assert type(built) is torch_class(path)
    assert built.param_groups[0]["lr"] == 0.25


def test_a_dotted_name_builds_torchs_class_and_a_plain_one_the_component():
    built = registry.build("optimizer", "torch.optim.NAdam", {"momentum_decay": 0.01, "beta2": 0.9})
    assert (built.name, built.version, built.kind) == ("torch.optim.NAdam", 1, "optimizer")
    (group,) = built.torch([torch.nn.Parameter(torch.zeros(2))], 0.1).param_groups
    assert (group["betas"], group["momentum_decay"]) == ((0.9, 0.9), 0.01)
    assert registry.build("optimizer", "adam", {"beta1": 0.5}) == optimizers.Adam(beta1=0.5)
    assert not hasattr(built, "update")
    assert hash(built) == hash(registry.build("optimizer", "torch.optim.NAdam", {}))


def test_equal_settings_are_equal_however_they_are_written():
    path = "torch.optim.SGD"
    assert (
        validate_torch(path, {"weight_decay": 0.0, "momentum": 0, "nesterov": False}, "here") == {}
    )
    for one in (1, 1.0):
        clean = validate_torch(path, {"weight_decay": one}, "here")
        assert (clean, type(clean["weight_decay"])) == ({"weight_decay": 1}, int)
        assert type(validate_torch("torch.optim.RMSprop", {"eps": one}, "here")["eps"]) is float
    assert validate_torch(path, {"foreach": True, "maximize": True}, "here") == {
        "foreach": True,
        "maximize": True,
    }
    assert validate_torch("torch.optim.Adam", {"beta1": 0.9, "beta2": 0.5}, "here") == {
        "beta2": 0.5
    }


REFUSED = {
    "no such class": (
        "torch.optim.Nadam",
        {},
        'there is no optimizer class "torch.optim.Nadam". Did you mean torch.optim.NAdam?',
    ),
    "no such module": (
        "torch.optimum.Adam",
        {},
        'there is no optimizer class "torch.optimum.Adam". Did you mean torch.optim.Adam?',
    ),
    "a path of dots": (".Adam", {}, 'there is no optimizer class ".Adam".'),
    "another class": (
        "torch.nn.Linear",
        {},
        '"torch.nn.Linear" is no subclass of torch.optim.Optimizer.',
    ),
    "the class of all": ("torch.optim.Optimizer", {}, "is no subclass of torch.optim.Optimizer."),
    "one with a closure": ("torch.optim.LBFGS", {}, "evaluates the loss several times a step"),
    "an unknown setting": (
        "torch.optim.SGD",
        {"momentun": 0.9},
        "has no setting `momentun`. It has: momentum, dampening,",
    ),
    "its nearest": ("torch.optim.SGD", {"momentun": 0.9}, "Did you mean momentum?"),
    "lr": ("torch.optim.SGD", {"lr": 0.1}, "has no setting `lr`"),
    "params": ("torch.optim.SGD", {"params": 1}, "has no setting `params`"),
    "a tuple": (
        "torch.optim.Rprop",
        {"etas": 0.5},
        "`etas` is a tuple of 2 in torch, which a study cannot give",
    ),
    "betas": ("torch.optim.Adam", {"betas": 0.5}, "has no setting `betas`. It has: beta1, beta2,"),
    "text for a number": (
        "torch.optim.SGD",
        {"momentum": "0.9"},
        "`momentum` is '0.9', and must be a number.",
    ),
    "a flag for a number": (
        "torch.optim.SGD",
        {"momentum": True},
        "`momentum` is True, and must be a number.",
    ),
    "a number for a flag": (
        "torch.optim.SGD",
        {"nesterov": 1},
        "`nesterov` is 1, and must be true or false.",
    ),
    "NaN": (
        "torch.optim.SGD",
        {"momentum": float("nan")},
        "`momentum` is nan, and must be a number.",
    ),
    "a list where anything goes": (
        "torch.optim.SGD",
        {"foreach": [1]},
        "`foreach` is [1], and must be a number, true, false or text.",
    ),
    "what torch refuses": (
        "torch.optim.Adam",
        {"beta1": 1.5},
        "refuses beta1 = 1.5: Invalid beta parameter at index 0: 1.5.",
    ),
    "a pair torch refuses": (
        "torch.optim.SGD",
        {"nesterov": True},
        "refuses nesterov = True: Nesterov momentum requires",
    ),
}


@pytest.mark.parametrize(("path", "given_settings", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_told_in_one_sentence(path, given_settings, sentence):
    with pytest.raises(UsageError) as told:
        validate_torch(path, given_settings, "page.toml, first [[optimizer]]")
    assert str(told.value).startswith("page.toml, first [[optimizer]]: ")
    assert sentence in str(told.value)


STRANGERS = """
import torch

class Twice(torch.optim.SGD):
    def __init__(self, params, lr, factor, text="a", choice=None):
        super().__init__(params, lr=factor * lr)

class NoRate(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=1.0)
"""


def test_a_strangers_class_is_reached_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "strangers_steps.py").write_text(STRANGERS)
    monkeypatch.syspath_prepend(tmp_path)
    path = "strangers_steps.Twice"
    assert validate_torch(path, {"factor": 3, "text": "b", "choice": 2}, "here") == {
        "factor": 3,
        "text": "b",
        "choice": 2,
    }
    (group,) = (
        TorchOptimizer(path, {"factor": 3})
        .torch([torch.nn.Parameter(torch.zeros(2))], 0.1)
        .param_groups
    )
    assert group["lr"] == pytest.approx(0.3)
    with pytest.raises(UsageError, match=r"refuses no settings: .*factor"):
        validate_torch(path, {}, "here")
    with pytest.raises(UsageError, match="takes no `lr`, which every cell must set"):
        validate_torch("strangers_steps.NoRate", {}, "here")


def test_a_strangers_module_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "strangers_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UsageError, match="strangers_broken failed to import: ZeroDivisionError: division by zero"
    ):
        validate_torch("strangers_broken.Any", {}, "here")
