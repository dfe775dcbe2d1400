"""A study in parts, on machines of their own, and what is merged of them: the tables of one run, or
a sentence on what is missing.
"""

from pathlib import Path

from clipbench import registry, study

PAGE = """
[run]
steps = 30
batch = 8
lr = [0.03, 0.1, 0.3]
seeds = { select = 2, report = 2 }
evaluations = 2

[[workload]]
name = "wdbc"

[[workload]]
name = "cosh"

[[optimizer]]
name = "sgd"

[[clip]]
name = "none"

[[clip]]
name = "norm"
relative = [0.5, 2]
"""
registry.load_packaged()
ASKED = study.parse("shared", PAGE, Path())
