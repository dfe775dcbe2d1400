"""The fences of the house: which module may import which, where each library is allowed, and how
long a file and a function may be.

A new module gets a row in ``MAY_IMPORT``. The checker reads sources and runs nothing; planted
violations show that it sees.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = "clipbench"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

# A folder has one row, and its members may import each other. `errors` is nearly everywhere: with
# UsageError a module speaks to the user.
MATTER = {"errors", "registry", "trees", "metrics"}
MEMORY = {"errors", "schema", "cell", "summary", "store"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {
        *("errors", "registry", "trees", "metrics", "fast", "loading", "running", "recording"),
    },
    # the matter
    "errors": set(),
    "cores": set(),
    "vocabulary": {"errors"},
    "registry": {"errors", "vocabulary"},
    "trees": set(),
    "metrics": {"errors"},
    "datasets": {"errors"},
    "clips": MATTER,
    "optimizers": MATTER,
    "workloads": {*MATTER, "datasets"},
    # the intent
    "measures": set(),
    "schema": {"errors", "measures"},
    "events": {"measures", "schema"},
    "cell": {"vocabulary", "registry", "schema"},
    "task": {"vocabulary", "cell"},
    "tolerance": set(),
    "lr_schedules": {"errors", "vocabulary", "registry"},
    "study": {"errors", "vocabulary", "registry", "schema", "events", "cell", "lr_schedules"},
    # the motion
    "forkserver": {"registry"},
    "listing": {"errors"},
    "streams": {"errors", "listing"},
    "feed": {"errors", "trees", "listing", "streams"},
    "step": {"trees", "cell", "measures"},
    "cache": set(),
    "compiling": {"cache"},
    "native": {"cache", "compiling"},
    "engines": {
        "streams",
        *MATTER,
        "compiling",
        "native",
        "vocabulary",
        "clips",
        "optimizers",
        "measures",
        "schema",
        "events",
        "skill",
        "summary",
        "cell",
        "lr_schedules",
        "feed",
        "step",
    },
    # the memory, and what fills it
    "skill": {"events", "schema"},
    "summary": {"measures", "schema", "events", "skill"},
    "store": {
        "errors",
        "vocabulary",
        "measures",
        "schema",
        "cell",
        "task",
        "skill",
        "summary",
        "events",
    },
    "execute": {
        *MEMORY,
        *("cores", "measures", "registry", "forkserver", "events", "study", "feed", "engines"),
    },
    # the sight
    "statistics": set(),
    "selection": {"vocabulary", "schema", "cell", "task", "store", "statistics"},
    "tuning": {"statistics"},
    "verdicts": {"schema"},
    "comparisons": {"task", "verdicts"},
    "analysis": {
        "tolerance",
        "schema",
        "cell",
        "task",
        "store",
        "statistics",
        "selection",
        "skill",
        "tuning",
        "verdicts",
        "comparisons",
    },
    "figures": {"schema", "task", "statistics", "selection", "analysis"},
    "report": {
        *MEMORY,
        "measures",
        "vocabulary",
        "task",
        "statistics",
        "selection",
        "verdicts",
        "analysis",
        "figures",
    },
    "compare": {"errors", "cell", "task", "store", "tuning", "analysis"},
    "loading": {"errors", "schema", "task", "store", "analysis", "figures", "report"},
    # what stands beside
    "recording": {*MEMORY, "trees", "measures", "events", "step", "execute"},
    "fast": {"errors", "compiling"},
    "throughput": {
        *MATTER,
        "vocabulary",
        "optimizers",
        "fast",
        "schema",
        "cell",
        "task",
        "feed",
        "step",
        "engines",
    },
    "conformance": {
        *MATTER,
        "streams",
        "optimizers",
        "measures",
        "events",
        "cell",
        "feed",
        "step",
        "engines",
    },
    "gate": {
        *MATTER,
        *MEMORY,
        "tolerance",
        "task",
        "study",
        "fast",
        "statistics",
        "feed",
        "engines",
        "execute",
        "protocol",
    },
    # a run from end to end
    "protocol": {
        *MEMORY,
        "cache",
        "vocabulary",
        "registry",
        "task",
        "metrics",
        "lr_schedules",
        "study",
        "statistics",
        "selection",
        "tuning",
        "comparisons",
        "feed",
        "engines",
        "execute",
        "throughput",
    },
    "device": {
        *("errors", "registry", "cell", "store", "analysis"),
        *("engines", "execute", "throughput"),
    },
    "progress": {"errors", "schema", "engines"},
    "export": {"errors", "schema", "task", "store"},
    "running": {"errors", "registry", "study", "store", "protocol", "progress", "loading"},
    "replay": {
        *MEMORY,
        "tolerance",
        "measures",
        "registry",
        "events",
        "study",
        "engines",
        "execute",
        "protocol",
    },
}
# cli sees all; nothing sees cli, but `python -m clipbench`
MAY_IMPORT |= {"cli": set(MAY_IMPORT), "__main__": {"cli"}}
for _module in set(MAY_IMPORT) - {"__init__"}:
    # its version; it is lazy and imports nothing
    MAY_IMPORT[_module] = MAY_IMPORT[_module] | {"__init__"}

ONLY_IN = {
    "pandas": {"store", "selection", "analysis", "figures", "report", "loading", "compare"},
    "pyarrow": {"schema", "store"},
    "pydantic": {"vocabulary", "registry", "study"},
    "matplotlib": {"figures"},
    "seaborn": {"figures"},
    "jinja2": {"report"},
    "vl_convert": {"report"},
    "ignite": {"recording"},
    "lightning": {"recording"},
    "monai": {"workloads"},
    "nnunetv2": {"recording"},
    "transformers": {"recording"},
    "nilearn": {"workloads"},
    "sklearn": {"workloads"},
    "click": {"cli"},
    "tqdm": {"cli", "progress"},
    "urllib": {"datasets"},
    "http": {"datasets"},
    "ray": {"execute"},
    "socket": {"execute"},  # whether a cluster answers at an address
}
NOTHING_BUT = {
    "measures": {"numpy"},
    "events": {"numpy"},
    "summary": {"numpy"},
    "statistics": {"numpy", "scipy"},
    "tuning": {"numpy", "scipy"},
    "verdicts": {"numpy", "scipy"},
}  # of all libraries
FREE_OF_TORCH = {
    "errors",
    "vocabulary",
    "registry",
    "datasets",
    "measures",
    "forkserver",
    "schema",
    "cell",
    "task",
    "lr_schedules",
    "study",
    "events",
    "skill",
    "summary",
    "store",
    "statistics",
    "selection",
    "tuning",
    "verdicts",
    "comparisons",
    "analysis",
    "figures",
    "report",
    "loading",
    "compare",
    "tolerance",
}
FREE_OF_TORCH_WHEN_IMPORTED = {"__init__", "__main__", "cli"}  # their functions may import it

NEVER = ("matplotlib.pyplot", "pylab")
GLOBAL_RANDOM = ("numpy.random", "random", "torch.random", "torch.cuda.random")  # modules
GLOBAL_TORCH = (
    "manual_seed",
    "seed",
    "initial_seed",
    "default_generator",
    "set_rng_state",
    "get_rng_state",
    "cuda.manual_seed",
)
GLOBAL_TORCH += ("cuda.manual_seed_all", "cuda.seed", "cuda.set_rng_state")
OWN_RANDOM = {
    f"numpy.random.{name}"
    for name in ("Generator", "SeedSequence", "default_rng", "PCG64", "Philox")
} | {"random.Random"}
TORCH_DRAWS = {
    f"torch.{name}"
    for name in (
        "bernoulli",
        "multinomial",
        "normal",
        "poisson",
        "rand",
        "randint",
        "randn",
        "randperm",
    )
}
# The one function that may touch the global state, and those that look whether a stranger did.
SEEDED = {("trees", "seeded"), ("conformance", "_random_state"), ("execute", "luck")}
BUILDS = {"model", "__init__", "reset_parameters"}  # run inside it: layers draw their own weights


@dataclass(frozen=True)
class Import:
    """``target`` imported by ``line``; ``late`` inside a function, ``typing`` under ``if
    TYPE_CHECKING``.
    """

    target: str
    line: int
    late: bool = False
    typing: bool = False


def sources() -> dict[str, str]:
    """The package on disk, module → text: ``cell``, ``workloads.tabular``, and ``workloads`` for
    a folder's own file.
    """
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = (
            path.read_text(encoding="utf-8")
        )
    return found


def row(module: str) -> str:
    """The row a module belongs to: its file, or its folder."""
    return module.partition(".")[0]


def imports(module: str, tree: ast.Module, known: Mapping[str, str]) -> Iterator[Import]:
    """All imports of a module, wherever they stand; those of ours as ``clipbench.X`` for a
    module X.
    """

    def visit(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        for target in _targets(module, node, known):
            yield Import(target, node.lineno, late, typing)
        typed = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        )
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        branch = node.body if typed else ()
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside, typing or child in branch)

    return visit(tree, late=False, typing=False)


def _targets(module: str, node: ast.AST, known: Mapping[str, str]) -> list[str]:
    """What one statement or call imports."""
    if isinstance(node, ast.Import):
        return [
            alias.name if alias.name != PACKAGE else f"{PACKAGE}.__init__" for alias in node.names
        ]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = [PACKAGE, *module.split(".")][: -node.level]
            base = ".".join([*parents, base] if base else parents)
        return [_from(base, alias.name, known) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
        "import_module",
        "__import__",
    ):
        return [str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant)]
    return []


def _from(base: str, name: str, known: Mapping[str, str]) -> str:
    if base.partition(".")[0] != PACKAGE or f"{base}.{name}".partition(".")[2] in known:
        return f"{base}.{name}"
    if base == PACKAGE:  # a name of the package itself: its own, or lent
        return (
            f"{PACKAGE}.__init__"
            if name.startswith("_")
            else f"{PACKAGE}.{'errors' if name == 'UsageError' else 'registry'}"
        )
    return base


def violations(known: Mapping[str, str]) -> list[str]:
    """Every broken fence of the package ``known`` (module → source), one sentence each."""
    trees = {module: ast.parse(text) for module, text in known.items()}
    edges = {module: list(imports(module, tree, known)) for module, tree in trees.items()}
    found = []
    for module in known:
        if row(module) not in MAY_IMPORT:
            found.append(f"{module}: has no row in MAY_IMPORT")
            continue
        found += [
            f"{module}:{edge.line}: {why}"
            for edge in edges[module]
            for why in _edge_problems(module, edge)
        ]
        found += [f"{module}:{line}: {why}" for line, why in _use_problems(module, trees[module])]
    return found + _cycles(edges) + _torch(edges)


def _edge_problems(module: str, edge: Import) -> Iterator[str]:
    library, _, below = edge.target.partition(".")
    if library == PACKAGE:
        if row(below) not in MAY_IMPORT[row(module)] | {row(module)}:
            yield f"may not import {row(below)}"
        return
    if row(module) not in ONLY_IN.get(library, {row(module)}):
        yield f"{library} belongs in {', '.join(sorted(ONLY_IN[library]))} only"
    if (
        row(module) in NOTHING_BUT
        and library not in NOTHING_BUT[row(module)] | sys.stdlib_module_names
    ):
        yield (
            f"may import no library but {', '.join(sorted(NOTHING_BUT[row(module)]))}, not "
            f"{library}"
        )
    if _within(edge.target, NEVER):
        yield "pyplot keeps figures in global state: make a Figure"


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _use_problems(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    names = _bound_names(tree)

    def dotted(node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return names.get(node.id, node.id if node.id == "print" else "")
        if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
            return f"{base}.{node.attr}"
        return ""

    def visit(node: ast.AST, functions: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        name = dotted(node)
        if name:
            if module != "cli" and name in ("print", "sys.stdout.write", "sys.stderr.write"):
                yield node.lineno, "printing belongs in cli only"
            if _within(name, NEVER):
                yield node.lineno, "pyplot keeps figures in global state: make a Figure"
            if (row(module), *functions[:1]) not in SEEDED and _touches_global_random(name):
                yield node.lineno, f"{name} is the global random state: take a generator"
        else:
            draws = (
                isinstance(node, ast.Call)
                and dotted(node.func) in TORCH_DRAWS
                and not BUILDS & set(functions)
            )
            if draws and not any(keyword.arg == "generator" for keyword in node.keywords):
                yield (
                    node.lineno,
                    f"{dotted(node.func)} without a generator draws from the global random state",
                )
            for child in ast.iter_child_nodes(node):
                function = (child.name,) if isinstance(child, ast.FunctionDef) else ()
                yield from visit(child, functions + function)

    return visit(tree, ())


def _touches_global_random(name: str) -> bool:
    if name in OWN_RANDOM or name in GLOBAL_RANDOM:
        return False
    return _within(name, GLOBAL_RANDOM) or _within(
        name, tuple(f"torch.{what}" for what in GLOBAL_TORCH)
    )


def _bound_names(tree: ast.Module) -> dict[str, str]:
    """Local name → what it stands for: ``np`` → ``numpy``, ``seed`` → ``numpy.random.seed``."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                bound[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound.update(
                {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            )
    return bound


def _ours(edges: list[Import]) -> set[str]:
    return {
        edge.target.partition(".")[2]
        for edge in edges
        if edge.target.startswith(f"{PACKAGE}.") and not edge.typing
    }


def _cycles(edges: Mapping[str, list[Import]]) -> list[str]:
    try:
        TopologicalSorter(
            {module: _ours(found) - {module} for module, found in edges.items()}
        ).prepare()
    except CycleError as error:
        return [f"imports run in a circle: {' → '.join(reversed(error.args[1]))}"]
    return []


def _torch(edges: Mapping[str, list[Import]]) -> list[str]:
    """Chains of imports by which torch comes to where it must not."""
    found = []
    for module in edges:
        if row(module) in FREE_OF_TORCH:
            reached = edges
        elif row(module) in FREE_OF_TORCH_WHEN_IMPORTED:
            reached = {
                name: [edge for edge in some if not edge.late] for name, some in edges.items()
            }
        else:
            continue
        chain = _way_to_torch(module, reached)
        if chain:
            found.append(f"{module}: brings torch along: {' → '.join(chain)}")
    return found


def _way_to_torch(start: str, edges: Mapping[str, list[Import]]) -> list[str]:
    chains, seen = [[start]], {start}
    for chain in chains:
        some = edges.get(chain[-1], [])
        if any(edge.target.partition(".")[0] == "torch" and not edge.typing for edge in some):
            return [*chain, "torch"]
        for module in sorted(_ours(some) - seen):
            seen.add(module)
            chains.append([*chain, module])
    return []


# --------------------------------------------------------------------------------- the house itself


def test_every_fence_holds():
    assert not violations(sources()), "\n".join(["", *violations(sources())])


# by several questions; and the claims of one, as data
SHARED = {
    "analysis.cells",
    "analysis.outcomes",
    "analysis.claims",
    "figures.style",
    "figures.panels",
}


def test_a_question_has_one_name_for_its_table_its_figure_and_its_section():
    """Nothing else is in `analysis` and `figures`; a section may do without a figure or a table
    of its own.
    """
    members = [module.partition(".") for module in sources() if module not in SHARED]
    stems = {
        folder: {stem for room, _, stem in members if room == folder and stem}
        for folder in ("analysis", "figures", "report")
    }
    assert stems["figures"] <= stems["analysis"] <= stems["report"]
    assert len(stems["figures"]) >= 8


def test_every_module_has_a_row():
    assert {row(module) for module in sources()} <= set(MAY_IMPORT)


def test_every_row_names_rows_only():
    named = set().union(
        *MAY_IMPORT.values(),
        *ONLY_IN.values(),
        NOTHING_BUT,
        FREE_OF_TORCH,
        FREE_OF_TORCH_WHEN_IMPORTED,
    )
    assert named <= set(MAY_IMPORT)


def test_the_table_itself_permits_no_circle_and_no_way_to_torch():
    """Else a permitted import could still break a fence, and the table would promise too much."""
    rows = {
        name: permitted - {"__init__"}
        for name, permitted in MAY_IMPORT.items()
        if name != "__init__"
    }
    order = list(TopologicalSorter(rows).static_order())
    assert set(order) == set(rows)
    for name in FREE_OF_TORCH:
        assert rows[name] <= FREE_OF_TORCH, name


MOST_LINES, MOST_OF_A_FUNCTION = 450, 60
LONG_FOR_A_REASON = re.compile(r"# noqa: .*\bPLR0915\b.* - \w")  # ruff's name for a long function


def too_long(known: Mapping[str, str]) -> list[str]:
    """Files and functions with too many lines, one sentence each. Decorators are not counted: an
    option of the command line is one.
    """
    found = []
    for module, text in known.items():
        lines = text.splitlines()
        if len(lines) > MOST_LINES:
            found.append(f"{module}: {len(lines)} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            count = node.end_lineno - node.lineno + 1
            if count > MOST_OF_A_FUNCTION and not LONG_FOR_A_REASON.search(lines[node.lineno - 1]):
                found.append(f"{module}:{node.lineno}: {node.name} has {count} lines")
    return found


def test_no_file_and_no_function_is_long():
    assert not too_long(sources()), "\n".join(["", *too_long(sources())])


def test_a_long_file_and_a_long_function_are_caught():
    body = "    pass\n" * MOST_OF_A_FUNCTION
    assert too_long({"cell": f"def f():\n{body}"}) == ["cell:1: f has 61 lines"]
    assert too_long({"cell": f"class A:\n def f(self):\n{body}"}) == ["cell:2: f has 61 lines"]
    assert too_long({"cell": f"def f():  # noqa: PLR0915\n{body}"}) == ["cell:1: f has 61 lines"]
    assert too_long({"cell": f"def f():  # noqa: PLR0915 - one program\n{body}"}) == []
    assert too_long({"cell": "\n" * (MOST_LINES + 1)}) == ["cell: 451 lines"]
    assert too_long({"cell": "\n" * MOST_LINES}) == []


# ----------------------------------------------------------------------------- the checker is awake

CLEAN = {
    "__init__": (
        "__version__ = '1'\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from "
        "clipbench import trees\n"
    ),
    "errors": "",
    "registry": "import pydantic\nfrom clipbench import UsageError\n",
    "trees": "import torch\ndef seeded():\n    torch.default_generator.manual_seed(1)\n",
    "clips": "import torch\nfrom clipbench import Positive, clip, trees\n",
    "schema": "import pyarrow\n",
    "cell": "from clipbench import registry\n",
    "statistics": "import numpy as np\ndef draw(seed):\n    return np.random.default_rng(seed)\n",
    "store": "import pandas, pyarrow.parquet\nfrom clipbench import __version__, schema\n",
    "workloads": "from clipbench.workloads import tabular\n",
    "workloads.tabular": (
        "import torch, sklearn\nclass A:\n    def model(self):\n        return torch.randn(3)\n"
    ),
    "cli": (
        "import click\ndef run():\n    import torch\n    from clipbench import trees\n    "
        "print(1)\n"
    ),
    "__main__": "from clipbench.cli import main\n",
}


def test_a_clean_house_is_found_clean():
    assert violations(CLEAN) == []


PLANTED = {
    "an unknown module": ("utils", "", "has no row"),
    "an import against the arrows": (
        "registry",
        "from clipbench import schema",
        "may not import schema",
    ),
    "one inside a function": (
        "registry",
        "def f():\n    from clipbench.schema import TABLES",
        "may not import schema",
    ),
    "one written relatively": ("registry", "from . import schema", "may not import schema"),
    "one from a folder": ("workloads.tabular", "from ..store import Store", "may not import store"),
    "one by import_module": (
        "registry",
        "import importlib\nimportlib.import_module('clipbench.schema')",
        "may not import schema",
    ),
    "one for types only": (
        "registry",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import clipbench.store",
        "store",
    ),
    "somebody sees cli": ("store", "from clipbench import cli", "may not import cli"),
    "a circle in a folder": ("workloads.tabular", "import clipbench.workloads", "circle: "),
    "torch in the sight": (
        "statistics",
        "from torch import nn",
        "brings torch along: statistics → torch",
    ),
    "torch in a function of the store": (
        "store",
        "def f():\n    import torch.nn",
        "brings torch along: store → torch",
    ),
    "torch by a detour": (
        "registry",
        "from clipbench import trees",
        "cell → registry → trees → torch",
    ),
    "torch when cli is imported": (
        "cli",
        "from clipbench import trees",
        "brings torch along: cli → trees → torch",
    ),
    "pandas in the motion": ("clips", "import pandas as pd", "pandas belongs in"),
    "pyarrow in the intent": ("cell", "from pyarrow import parquet", "pyarrow belongs in"),
    "pydantic in a component": ("clips", "from pydantic import Field", "pydantic belongs in"),
    "matplotlib in the store": ("store", "import matplotlib", "matplotlib belongs in"),
    "seaborn in the store": ("store", "import seaborn", "seaborn belongs in"),
    "a progress bar outside cli": ("store", "from tqdm.auto import tqdm", "tqdm belongs in"),
    "click outside cli": ("store", "import click", "click belongs in"),
    "the network outside datasets": (
        "store",
        "import urllib.request",
        "urllib belongs in datasets only",
    ),
    "a library in pure numpy": ("statistics", "import sklearn", "no library but numpy, scipy"),
    "pyplot": ("figures", "from matplotlib import pyplot", "pyplot"),
    "pyplot by attribute": ("figures", "import matplotlib\nmatplotlib.pyplot.figure()", "pyplot"),
    "print": ("store", "print('saved')", "printing"),
    "print handed on": ("store", "def f(say=print):\n    say(1)", "printing"),
    "stderr": ("store", "import sys\nsys.stderr.write('saved')", "printing"),
    "torch's seed": (
        "clips",
        "import torch\ntorch.manual_seed(0)",
        "torch.manual_seed is the global",
    ),
    "torch's seed under a name": (
        "clips",
        "from torch import manual_seed as sow\nsow(0)",
        "torch.manual_seed is the global",
    ),
    "torch's generator": (
        "trees",
        "import torch\ndef f():\n    torch.default_generator.seed()",
        "torch.default_generator",
    ),
    "NumPy's seed": (
        "statistics",
        "import numpy as np\nnp.random.seed(0)",
        "numpy.random.seed is the global",
    ),
    "NumPy's draw": (
        "statistics",
        "from numpy import random as r\nr.normal(3)",
        "numpy.random.normal is the global",
    ),
    "Python's draw": ("store", "import random\nrandom.shuffle([])", "random.shuffle is the global"),
    "torch's draw": (
        "workloads.tabular",
        "import torch\ndef sample(generator):\n    torch.randn(3)",
        "torch.randn without",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_the_checker_catches(case: str):
    module, source, expected = PLANTED[case]
    found = violations(CLEAN | {module: source})
    assert any(expected in sentence for sentence in found), found


LAYERS = ("errors", "registry", "cell", "store", "analysis", "figures", "report", "cli")


@pytest.mark.parametrize(("earlier", "later"), [*pairwise(LAYERS)])
def test_an_import_turned_round_is_caught(earlier: str, later: str):
    assert f"{earlier}:1: may not import {later}" in violations(
        {earlier: f"from clipbench.{later} import x", later: ""}
    )


# -------------------------------------------------------------------------------- seen from outside

IMPORTED = """
import sys
from clipbench.cli import main
sys.argv = ["clipbench", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
print(sorted({"torch", "matplotlib", "pandas"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["report", "--help"], ["verify", "--help"], ["run", "--help"], ["gate", "--help"]],
    ids=" ".join,
)
def test_help_waits_for_no_library(arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_contributing_draws_every_room(checkout: Path):
    text = (checkout / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = text[text.index("The rooms, from the ground up") :].split("```")[1]
    drawn = [
        word
        for line in drawing.splitlines()
        for word in re.split(r"\s{2,}| · ", line.strip())
        if word in MAY_IMPORT
    ]
    assert sorted(drawn) == sorted(room for room in MAY_IMPORT if not room.startswith("__"))


def test_fast_steps_load_torch_and_nothing_else_of_weight():
    """A training loop of the user's own pays for no library of ours."""
    code = (
        "import sys, torch; before = set(sys.modules); import clipbench.fast; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
    assert loaded == {"clipbench"}
