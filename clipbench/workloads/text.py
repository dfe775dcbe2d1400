"""Language: the next character of a text, by a small transformer."""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from collections import Counter
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.errors import UsageError
from clipbench.registry import Count, workload

# Word for word the same in CPython 3.11.2, 3.11.7, 3.12.1 and 3.13.0; the other topics are edited
# with the language.
TOPICS = """
    assert bitwise bltin-code-objects bltin-ellipsis-object bltin-null-object bltin-type-objects
    booleans break callable-types calls comparisons context-managers continue del dynamic-features
    else exceptions for global id-classes if import in integers lambda operator-summary pass return
    slicings typesfunctions typesmodules unary while with yield
    """.split()  # noqa: SIM905 - three dozen words read better without quotes
# of the text that they make there, SHA-256
DIGEST = "8d572c1e8be2bfcc89de7b78213fbbcbbd7508d82beb570b7df7a5c531823bd1"
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
# from curly quotes
STRAIGHT = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'"})
OTHER = ALPHABET.index("?")  # what stands for a character outside the alphabet
VERSION = 2  # of the workload with that text; 2: weights drawn in float64
TRAIN, VALIDATION = 0.8, 0.1  # shares of the text; the rest is the test


@lru_cache(maxsize=1)
def corpus() -> str:
    """The topics in their order, a line a paragraph, its words one space apart; empty in a Python
    that ships without them.

    A paragraph that comes again is left out, so that none is in two splits.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return ""
    paragraphs = (
        paragraph for name in TOPICS for paragraph in re.split(r"\n\s*\n", topics.get(name, ""))
    )
    return "\n".join(dict.fromkeys(" ".join(paragraph.split()) for paragraph in paragraphs))


def version_of(text: str) -> int:
    """The version of the known text; of any other a number made from it, so that cells of both
    are never compared.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    return VERSION if digest == DIGEST else int(digest[:8], 16) + VERSION


def encoded(text: str) -> list[int]:
    """Every character's place in the alphabet, curly quotes straightened."""
    code = {character: number for number, character in enumerate(ALPHABET)}
    return [code.get(character, OTHER) for character in text.translate(STRAIGHT)]


def entropy(symbols: list[int]) -> float:
    """The mean loss of their frequencies as a constant prediction, in nats."""
    return -sum(n * math.log(n / len(symbols)) for n in Counter(symbols).values()) / max(
        1, len(symbols)
    )


@workload("text")
class Text:
    r"""A test of a small transformer, a kind of network that is hardly ever trained without a norm
    clip.

    The next character of English text: help topics of Python on its own language, as CPython ships
    them for ``help()`` (``pydoc_data.topics``; Python Software Foundation License, version 2), some
    grammar and code among the prose. Of the topics only those 35 are taken that are alike in
    CPython 3.11.2, 3.11.7, 3.12.1 and 3.13.0, 59,395 characters. Where a Python has edited them,
    its text is another version of this workload, and never compared. 96 characters: the line's end
    and the printable ones of ASCII; curly quotes are straightened, the 16 others count as ``?``.

    By position 80 % of the text are for training, 10 % for validation, 10 % for the test, the same
    for every seed. A batch is of windows drawn from the first; the others are cut into windows side
    by side. Inputs are N×T, characters by number, and targets the N×T that follow each of them. All
    positions count, the first of a window too, which knows but one character.

    .. math:: x \leftarrow x + \mathrm{attention}(\mathrm{norm}\,x), \qquad
              x \leftarrow x + W_2 \max(0,\ W_1\, \mathrm{norm}\,x)

    A decoder with learned positions, 4w hidden units and no dropout, each half normed before and
    not after; queries, keys and values have no biases. Weights from N(0, .02²), biases zero; those
    of the output are the log frequencies of the training text, so that an untrained network is at
    chance and not half as bad again.

    :param width: w, the size of the vector of a character, at least 1.
    :param depth: pairs of attention and hidden layer, at least 1.
    :param heads: heads of each attention, at least 1, a divisor of w.
    :param context: T, the characters of a window, at least 1.

    **Source**: Vaswani et al. 2017, normed as in Xiong et al. 2020, weights as in Radford et al.
    2019; the text from CPython.
    """

    width: Count = 32
    depth: Count = 2
    heads: Count = 4
    context: Count = 32

    metric = metrics.bits
    target = 2.54
    target_metric = target / math.log(2)
    reference_loss = entropy(encoded(corpus()))
    chance = reference_loss / math.log(2)
    step_seconds = 0.004
    lanes = True
    version = version_of(corpus())

    def ready(self) -> None:
        """Whether the heads share the width, and a window fits into every split.

        :raises UsageError: they do not, or it does not.
        """
        if self.width % self.heads:
            raise UsageError(
                f'workload "text": the width is {self.width}, and must be a multiple of its '
                f"{self.heads} heads."
            )
        shortest = min(map(len, _parts().values()))
        if shortest <= self.context:
            raise UsageError(
                f'workload "text": the context is {self.context}, and must be less than the '
                f"{shortest} characters of a split of "
                "Python's help topics (pydoc_data.topics)."
            )

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        self.ready()
        return {split: self._windows(_parts()[split]) for split in ("validation", "test")}

    def sample(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        text = _parts()["train"]
        start = torch.randint(len(text) - self.context, (batch, 1), generator=generator)
        window = text[start + torch.arange(self.context + 1)]
        return window[:, :-1], window[:, 1:]

    def samples(self, generator: Generator, batch: int, count: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.sample(generator, count * batch)
        return inputs.unflatten(0, (count, batch)), targets.unflatten(0, (count, batch))

    def model(self) -> nn.Module:
        self.ready()
        return Decoder(self.width, self.depth, self.heads, self.context)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())

    def _windows(self, text: Tensor) -> tuple[Tensor, Tensor]:
        count = (len(text) - 1) // self.context * self.context
        return text[:count].reshape(-1, self.context), text[1 : count + 1].reshape(-1, self.context)


@lru_cache(maxsize=1)
def _parts() -> dict[str, Tensor]:
    """The splits: stretches of the text, as numbers."""
    symbols = torch.tensor(encoded(corpus()), dtype=torch.long)
    cuts = round(TRAIN * len(symbols)), round((TRAIN + VALIDATION) * len(symbols))
    return dict(zip(("train", "validation", "test"), symbols.tensor_split(cuts), strict=True))


class Decoder(nn.Module):
    """A causal transformer from N×T characters to the logits of those that follow, N×T×96."""

    def __init__(self, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, len(ALPHABET))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # one more, that none is at log 0
        counts = _parts()["train"].bincount(minlength=len(ALPHABET)) + 1
        with torch.no_grad():
            self.output.bias.copy_((counts.double() / counts.sum()).log())

    def forward(self, inputs: Tensor) -> Tensor:
        length = inputs.shape[-1]
        # Of everything ahead, which a position must not see: added to a score it leaves no weight.
        ahead = torch.full(
            (length, length), -math.inf, dtype=self.output.bias.dtype, device=inputs.device
        ).triu(1)
        x = self.characters(inputs) + self.positions.weight[:length]
        for block in self.blocks:
            x = block(x, ahead)
        return self.output(self.norm(x))


class Block(nn.Module):
    """Attention and a hidden layer, each added to what it is given, N×T×w.

    From plain operations: torch's own attention falls back under vmap to one lane after the other.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        # No bias: that of the keys moves all scores of a position alike, so that its gradient would
        # be nothing but rounding.
        self.attended, self.joined = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width),
        )
        self.hidden, self.folded = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, ahead: Tensor) -> Tensor:
        """The output; ``ahead`` is added to the scores, T×T."""
        split = self.attended(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.movedim(-4, -2).unbind(-4)  # N×heads×T×w/heads
        weights = (query / math.sqrt(key.shape[-1]) @ key.mT + ahead).softmax(-1)
        x = x + self.joined((weights @ value).movedim(-3, -2).flatten(-2))
        return x + self.folded(self.hidden(self.before_hidden(x)).relu())
