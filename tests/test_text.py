"""The workload on characters: its text, its windows and its transformer."""

import math
import os
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import warm
from scipy import stats
from torch import nn
from torch.func import functional_call, grad

from clipbench import feed, registry
from clipbench.errors import UsageError
from clipbench.workloads import text


def built(**fields):
    return registry.build("workload", "text", fields)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def spelled(symbols):
    return "".join(text.ALPHABET[symbol] for symbol in symbols)


def as_read():
    """The text with its curly quotes straightened and a question mark for what is not printable
    ASCII.
    """
    straight = (
        text.corpus()
        .replace("\u201c", '"')
        .replace("\u201d", '"')
        .replace("\u2018", "'")
        .replace("\u2019", "'")
    )
    return "".join(
        character if character.isascii() and (character.isprintable() or character == "\n") else "?"
        for character in straight
    )


known = pytest.mark.skipif(
    built().version != text.VERSION, reason="the help topics of this Python are others"
)

# ----------------------------------------------------------------------------------------- the text


@known
def test_the_text_is_the_one_that_the_docstring_counts():
    whole = text.corpus()
    assert len(whole) == 59_395
    assert len(text.TOPICS) == 35
    outside = [
        character for character in whole.translate(text.STRAIGHT) if character not in text.ALPHABET
    ]
    assert len(outside) == 16
    assert len(text.ALPHABET) == len(set(text.ALPHABET)) == 96


@known
def test_the_text_is_english_and_read_as_it_stands():
    """The first sentence of the first topic, and a sentence of each split, found again in what
    the numbers spell.
    """
    parts = {split: spelled(part.tolist()) for split, part in text._parts().items()}
    assert parts["train"].startswith('The "assert" statement')
    assert (
        "Function objects are created by function definitions."
        in parts["validation"] + parts["test"]
    )
    assert "".join(parts.values()) == as_read()


def test_the_splits_are_80_10_10_percent_by_position():
    parts = text._parts()
    assert list(parts) == ["train", "validation", "test"]
    total = sum(map(len, parts.values()))
    assert [len(part) / total for part in parts.values()] == pytest.approx(
        [0.8, 0.1, 0.1], abs=1e-4
    )


def test_no_paragraph_is_in_two_splits():
    paragraphs = text.corpus().split("\n")
    assert len(paragraphs) == len(set(paragraphs))


def test_another_text_is_another_version():
    """By one letter; and a Python without the topics has a version as well."""
    versions = {text.version_of(words) for words in (text.corpus(), text.corpus() + "x", "")}
    assert len(versions) == 3
    assert all(isinstance(version, int) for version in versions)


def test_a_python_without_the_topics_still_has_the_other_workloads():
    """They are a module that may be missing: importing the workloads goes on, and the text says
    what it lacks.
    """
    code = """if True:
        import sys
        sys.modules["pydoc_data.topics"] = None
        from clipbench import UsageError, registry
        registry.load_packaged()
        assert registry.build("workload", "wdbc", {}).width == 64
        try:
            registry.ready("text", {})
        except UsageError as error:
            print(error)
    """
    places = os.pathsep.join(filter(None, sys.path))
    said = warm.run("-c", code, env={**os.environ, "PYTHONPATH": places}).stdout
    assert "the context is 32, and must be less than the 0 characters" in said
    assert "pydoc_data.topics" in said


def test_the_reference_is_the_entropy_of_the_characters():
    """Counted again from the text, with scipy; and no constant prediction has a smaller loss on
    it.
    """
    counts = Counter(as_read())
    assert built().reference_loss == pytest.approx(stats.entropy(list(counts.values())), rel=1e-12)
    symbols = torch.cat([*text._parts().values()])
    best = (symbols.bincount(minlength=96).clamp(min=1e-300).double() / len(symbols)).log()
    loss = built().loss(best.expand(len(symbols), -1), symbols).item()
    assert loss == pytest.approx(built().reference_loss, rel=1e-9)
    disturbed = best + 0.1 * torch.randn(96, generator=draw(1), dtype=torch.float64)
    assert built().loss(disturbed.expand(len(symbols), -1), symbols).item() > loss


# -------------------------------------------------------------------------------------- the windows


@pytest.mark.parametrize("context", [1, 32, 50])
def test_targets_are_the_characters_that_follow(context):
    """In drawn windows and in fixed ones; each window stands in its split as it is."""
    work, parts = built(context=context), text._parts()
    found = {"train": work.sample(draw(2), 64), **work.data()}
    for split, (inputs, targets) in found.items():
        assert inputs.shape == targets.shape == (len(inputs), context)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        whole = spelled(parts[split].tolist())
        for window, last in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True):
            assert spelled([*window, last]) in whole


def test_fixed_windows_lie_side_by_side_and_leave_less_than_a_window_out():
    for split, (inputs, targets) in built(context=32).data().items():
        part = text._parts()[split]
        assert torch.equal(inputs.flatten(), part[: inputs.numel()])
        assert torch.equal(targets.flatten(), part[1 : inputs.numel() + 1])
        assert 0 < len(part) - inputs.numel() <= 32


def test_windows_are_drawn_evenly_from_the_whole_training_text(monkeypatch):
    """Their starts, by a test of Kolmogorov and Smirnov; the first and the last place are among
    those that can be drawn.
    """
    work = built(context=40)
    part = text._parts()["train"]
    places = torch.arange(len(part))
    monkeypatch.setattr(text, "_parts", lambda: {"train": places})
    inputs, targets = work.sample(draw(3), 400_000)
    assert stats.kstest(inputs[:20_000, 0].numpy() / (len(part) - 40), "uniform").pvalue > 1e-3
    assert (inputs.min().item(), targets.max().item()) == (0, len(part) - 1)


def test_evaluations_are_the_same_for_every_seed():
    first, second = (feed.splits(built(), seed) for seed in (0, 1))
    for split in ("validation", "test"):
        assert torch.equal(first[split][0], second[split][0])


def test_characters_stay_whole_numbers_in_every_dtype():
    for inputs, targets in (
        *feed.splits(built(), 0, torch.float64).values(),
        next(feed.batches(built(), 0, 4, 1, torch.float64)),
    ):
        assert inputs.dtype == targets.dtype == torch.long


# ---------------------------------------------------------------------------------- the transformer


def peer(model, heads):
    """torch's own transformer layers with the weights of ``model``."""
    width = model.output.in_features
    with torch.random.fork_rng(devices=[]):
        layers = [
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, batch_first=True, norm_first=True, dtype=torch.float64
            )
            for _ in model.blocks
        ]
    for layer, block in zip(layers, model.blocks, strict=True):
        pairs = {
            "self_attn.in_proj_weight": block.attended.weight,
            "self_attn.in_proj_bias": torch.zeros(3 * width),
            "self_attn.out_proj.weight": block.joined.weight,
            "self_attn.out_proj.bias": block.joined.bias,
            "linear1.weight": block.hidden.weight,
            "linear1.bias": block.hidden.bias,
            "linear2.weight": block.folded.weight,
            "linear2.bias": block.folded.bias,
            "norm1.weight": block.before_attention.weight,
            "norm1.bias": block.before_attention.bias,
            "norm2.weight": block.before_hidden.weight,
            "norm2.bias": block.before_hidden.bias,
        }
        layer.load_state_dict(pairs)
    return layers


@pytest.mark.parametrize(
    ("width", "depth", "heads", "context"), [(32, 2, 4, 32), (12, 1, 1, 5), (12, 3, 6, 1)]
)
def test_the_transformer_is_torchs_own(width, depth, heads, context):
    """Written from plain operations for the lanes, it is ``nn.TransformerEncoderLayer``, normed
    first, under a causal mask.
    """
    work = built(width=width, depth=depth, heads=heads, context=context)
    model = feed.model(work, 0, torch.float64)
    with torch.no_grad():  # at weights as small as the first, attention hardly counts
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(
                torch.randn(parameter.shape, generator=draw(number), dtype=torch.float64) / 4
            )
    inputs, _ = work.sample(draw(4), 7)
    x = model.characters(inputs) + model.positions(torch.arange(context))
    mask = nn.Transformer.generate_square_subsequent_mask(context, dtype=torch.float64)
    for layer in peer(model, heads):
        x = layer(x, src_mask=mask)
    torch.testing.assert_close(model(inputs), model.output(model.norm(x)), rtol=1e-10, atol=1e-12)


def test_no_position_sees_what_comes_after_it():
    """Another character at one place changes the logits there and after it, and none before, to
    the bit.
    """
    model = feed.model(built(), 1)
    inputs, _ = built().sample(draw(5), 1)
    changed = inputs.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 96
    with torch.no_grad():
        before, after = model(inputs), model(changed)
    moved = (before != after).any(-1)[0]
    assert not moved[:20].any()
    assert moved[20:].all()


def test_an_untrained_network_predicts_the_frequencies_of_the_training_text():
    work = built()
    inputs, targets = work.data()["validation"]
    constant = text._parts()["train"].bincount(minlength=96).add(1).double()
    constant = (constant / constant.sum()).log().expand(*targets.shape, -1)
    model = feed.model(work, 0, torch.float64)
    with torch.no_grad():
        assert work.loss(model(inputs), targets).item() == pytest.approx(
            work.loss(constant, targets).item(), rel=0.01
        )


def test_weights_start_small_and_normal_and_biases_at_zero():
    model = feed.model(built(width=128), 0)
    for name, parameter in model.named_parameters():
        if "norm" in name or "before" in name:
            assert torch.equal(
                parameter, torch.full_like(parameter, float(name.endswith("weight")))
            )
        elif name.endswith("weight"):
            assert stats.kstest(parameter.detach().flatten().numpy() / 0.02, "norm").pvalue > 1e-4
        elif name != "output.bias":
            assert not parameter.any()


def test_every_weight_has_a_gradient():
    """After a step: at first the output's weights alone carry what comes before them."""
    model = feed.model(built(), 0, torch.float64)
    inputs, targets = built().sample(draw(6), 64)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = grad(lambda params: built().loss(functional_call(model, params, (inputs,)), targets))(
        weights
    )
    still = {name for name, leaf in found.items() if not leaf.any()}
    assert not still


def test_a_hundred_steps_of_adam_learn_more_than_the_frequencies():
    """From 4.7 bits a character to below 4: what the last character tells."""
    work = built()
    model = feed.model(work, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for inputs, targets in feed.batches(work, 0, 16, 100):
        optimizer.zero_grad()
        work.loss(model(inputs), targets).backward()
        optimizer.step()
    inputs, targets = work.data()["validation"]
    with torch.no_grad():
        reached = work.metric(model(inputs), targets)
    assert reached < 4 < work.reference_loss / math.log(2)


# ---------------------------------------------------------------------------------------- wrong use


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UsageError, match="the width is 30, and must be a multiple of its 4 heads"):
        built(width=30).model()


def test_a_context_longer_than_a_split_is_refused():
    """Before anything is trained: the shortest split decides."""
    for refused in (
        built(context=10_000).ready,
        built(context=10_000).data,
        built(context=10_000).model,
    ):
        with pytest.raises(UsageError, match="the context is 10000, and must be less than the"):
            refused()


def test_settings_make_the_network_as_wide_deep_and_long_as_they_say():
    model = feed.model(built(width=16, depth=3, heads=2, context=9), 0)
    assert len(model.blocks) == 3
    assert model.output.weight.shape == (96, 16)
    assert model.positions.weight.shape == (9, 16)
    assert np.unique([block.heads for block in model.blocks]).tolist() == [2]
