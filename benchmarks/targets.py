"""The targets of the packaged workloads: what the best unclipped arm has reached after three
quarters of its steps.

``python benchmarks/targets.py quick wdbc digits temporal-order cosh`` runs the unclipped arms of
the study ``quick``. For each workload and batch size it prints the median, over 20 report seeds, of
the validation loss at 75 % of the steps, for the arm that is best at the end. The numbers go into
the workloads' ``target``; the metric of those runs where they first meet it, printed below, goes
into ``target_metric``.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from clipbench import protocol, selection, study
from clipbench.schema import Reading, Role
from clipbench.store import Store

SEEDS = 20


def unclipped(name: str, workloads: list[str]) -> study.Study:
    """The study without its clips, on some of its workloads, with 20 report seeds."""
    page = study.read(name)
    tables = [table for table in page.document.workload if table.name in workloads]
    seeds = page.document.run.seeds.model_copy(update={"report": SEEDS})
    changes = {
        "run": page.document.run.model_copy(update={"seeds": seeds}),
        "workload": [
            table.model_copy(
                update={"seeds": table.seeds and table.seeds.model_copy(update={"report": SEEDS})}
            )
            for table in tables
        ],
        "clip": [table for table in page.document.clip if table.name == "none"],
        "untuned": page.document.untuned.model_copy(update={"arms": []}),
    }
    return replace(page, document=page.document.model_copy(update=changes))


def main(name: str, workloads: list[str]) -> None:
    page = unclipped(name, workloads)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "targets", "targets", page.text)
        with store.claim():
            protocol.run(page, store, protocol.Options(throughput=False))
        cells, evals = store.read("cells"), store.read("evals")
        seeds = dict.fromkeys(cells["problem"].unique(), SEEDS)
        chosen = selection.readings(selection.choose(selection.score(cells)), seeds, None)
        chosen = chosen[chosen["reading"] == Reading.ALL][
            ["problem", "batch", "arm", "lr"]
        ].drop_duplicates()
        losses = evals[(evals["split"] == "validation") & (evals["metric"] == "loss")]
        for (problem, batch), arms in chosen.groupby(["problem", "batch"]):
            ends, targets, reports = {}, {}, {}
            for arm in arms.itertuples():
                runs = cells[
                    (cells["role"] == Role.REPORT)
                    & (cells["problem"] == problem)
                    & (cells["batch"] == batch)
                    & (cells["arm"] == arm.arm)
                    & (cells["lr"] == arm.lr)
                ]
                reports[arm.arm] = set(runs["cell"])
                mine = losses[losses["cell"].isin(runs["cell"])]
                last = mine["step"].max()
                early = mine["step"].unique()[abs(mine["step"].unique() - 0.75 * last).argmin()]
                ends[arm.arm] = mine.loc[mine["step"] == last, "value"].median()
                targets[arm.arm] = mine.loc[mine["step"] == early, "value"].median()
                sys.stdout.write(
                    f"  {problem}, batch {batch}: {arm.arm} at lr {arm.lr:g} ends at "
                    f"{ends[arm.arm]:.4g}, {targets[arm.arm]:.4g} at 75 %\n"
                )
            best = min(ends, key=ends.__getitem__)
            sys.stdout.write(
                f"{problem}, batch {batch}: target {targets[best]:.6g} ({best}, {SEEDS} seeds)\n"
            )
            mine = evals[evals["cell"].isin(reports[best]) & (evals["split"] == "validation")]
            metric = cells.loc[cells["problem"] == problem, "metric"].iloc[0]
            met = at_target(mine, metric, targets[best])
            if met:
                sys.stdout.write(
                    f"{problem}, batch {batch}: target_metric {median(met):.4g} "
                    f"({len(met)} seeds met the target)\n"
                )


def at_target(evals, metric: str, target: float) -> list[float]:
    """The metric of each run at its first evaluation whose loss meets the target."""
    found = []
    for _, run in evals.sort_values("step").groupby("cell"):
        losses = run[run["metric"] == "loss"].set_index("step")["value"]
        met = losses.index[losses <= target]
        if len(met):
            there = run[(run["metric"] == metric) & (run["step"] == met[0])]
            found.append(float(there["value"].iloc[0]))
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
