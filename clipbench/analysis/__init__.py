"""DataFrame → DataFrame: from the cells of a study to what the report says about them.

Two rules hold everywhere. A diverged seed is an outcome: it is counted, and if it has no value it
counts as the worst possible one. A failed or missing seed, or one without a metric, is unknown:
nothing is concluded without it.

A file holds the tables of one question; the question's figure and its section have the file's name
in ``figures/`` and ``report/``. What several questions share is in ``cells`` and ``outcomes``.
Nothing here knows a figure or a page.
"""
