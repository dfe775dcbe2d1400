"""DataFrame → Figure. No pyplot, no global style, no dates: the same frame gives the same bytes.

A method keeps its colour in every figure: a clip's colour, or the optimizer's where nothing is clipped. Markers tell
optimizers apart; letters, hatches and labels say the rest, so that nothing depends on colour alone.
"""

from matplotlib.figure import Figure

from clipbench.figures.implementations import implementations
from clipbench.figures.outcomes import curves, headline
from clipbench.figures.published import published
from clipbench.figures.settings import cost, fired, heat, stable
from clipbench.figures.style import CLIPS, OPTIMIZERS, STRANGERS, arm_colours, colours, number, ordered, render, setting

__all__ = [
    "CLIPS",
    "OPTIMIZERS",
    "STRANGERS",
    "Figure",
    "arm_colours",
    "colours",
    "cost",
    "curves",
    "fired",
    "headline",
    "heat",
    "implementations",
    "number",
    "ordered",
    "published",
    "render",
    "setting",
    "stable",
]
