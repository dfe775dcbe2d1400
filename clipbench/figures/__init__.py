"""DataFrame → Figure. No pyplot, no global style, no dates: the same frame gives the same bytes.

A method keeps its colour in every figure: a clip's colour, or the optimizer's if nothing is
clipped. Markers tell optimizers apart; letters, hatches and labels say the rest, so that nothing
depends on colour alone.

A file draws the figure of one question, and has the name of the question's file in ``analysis/``;
``style`` is the look they share. Nothing here knows a store or a page.
"""

from matplotlib.figure import Figure

__all__ = ["Figure"]  # the report names what it hands on, and imports no matplotlib
