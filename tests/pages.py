"""The pages of small studies, as text."""

import json


def study_page(
    workloads, optimizers="sgd", clips=None, *, title=None, use=None, select=1, report=0, **run
):
    """A page of one workload and one optimizer, or a list of them, and of clips: name → settings,
    `none` if there are none.

    ``select`` and ``report`` are the numbers of seeds, ``run`` are more words of [run].
    """
    top = {name: value for name, value in (("title", title), ("use", use)) if value is not None}
    tables = [("workload", name, {}) for name in _list(workloads)] + [
        ("optimizer", name, {}) for name in _list(optimizers)
    ]
    tables += [("clip", name, settings) for name, settings in (clips or {"none": {}}).items()]
    return "\n".join(
        [
            *_lines(top),
            "[run]",
            *_lines(run),
            f"seeds = {{ select = {select}, report = {report} }}",
            *(
                line
                for kind, name, settings in tables
                for line in ("", f"[[{kind}]]", *_lines({"name": name, **settings}))
            ),
            "",
        ]
    )


def _list(names):
    return [names] if isinstance(names, str) else names


def _lines(words):
    return [f"{name} = {json.dumps(value)}" for name, value in words.items()]
