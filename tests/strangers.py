"""What a stranger brings: the clip and the study that the docs show, word for word, an optimizer,
and networks.
"""

import re
from pathlib import Path

from torch.nn import functional

from clipbench import metrics, registry, workload

CHECKOUT = Path(__file__).resolve().parents[1]


def shown(page, language):
    """The first block in one language on a page of the docs."""
    text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
    return re.search(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)[1]


EMA = (CHECKOUT / "examples/clip_of_my_own/ema.py").read_text(encoding="utf-8")
STUDY = shown("study.md", "toml")
SIGNUM = (CHECKOUT / "examples/optimizer_of_my_own/signum.py").read_text(encoding="utf-8")


def on_cancer(name, build, measure=functional.cross_entropy):
    """Register a workload: the data of wdbc, another network, and maybe another loss."""

    @workload(name)
    class Other:
        metric = metrics.accuracy
        reference_loss = 1.0

        def data(self, generator):
            return registry.build("workload", "wdbc", {}).data(generator)

        def model(self):
            return build()

        def loss(self, output, target):
            return measure(output, target)
