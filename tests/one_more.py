"""Run as a program by `test_measures`, with a copy of the package whose table has the measure
``turned`` as its last.

``python one_more.py FOLDER PAGE``: trains in every engine, writes the study on the page by two of
them, replays and verifies those and ``FOLDER/older``, which was written without the measure, and
prints as JSON what it saw.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from clipbench import engines, feed, measures, protocol, registry, replay, study
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job, Trainer, lanes
from clipbench.store import Store

STEPS, BATCH = 12, 8


def job(lr, dtype="float64"):
    clip = {"max_norm": 0.1}
    parts = Part("wdbc", 1), Part("momentum", 1), Part("norm", 1, clip, "max_norm")
    return Job(
        Cell(*parts, lr=lr, seed=0, steps=STEPS, batch=BATCH, evaluations=2, dtype=dtype), clip
    )


def by_hand(asked):
    """The cosines between the gradients of consecutive steps, by NumPy."""
    trainer, found, before = Trainer(Components.of(asked), asked.cell, metered=False), [], None
    for batch in feed.batches(trainer.workload, 0, BATCH, STEPS, torch.float64):
        trainer.optimizer.zero_grad()
        trainer.backward(*batch)
        raw = (
            torch.cat([param.grad.reshape(-1) for param in trainer.module.parameters()])
            .numpy()
            .copy()
        )
        found.append(
            np.nan
            if before is None
            else raw @ before / np.linalg.norm(raw) / np.linalg.norm(before)
        )
        before = raw
        trainer.clip()
        trainer.optimizer.step()
    return found


def nulls(store):
    return int(store.read("curves")["turned"].isna().sum())


def seen(store):
    """What is true of a stored study: whether it replays, what verify says, and where the
    measure is null or NaN.
    """
    turned = store.read("curves")["turned"]
    replayed = replay.replay(store, store.read("cells")["cell"].iloc[0])
    found = {
        "rows": len(turned),
        "null": nulls(store),
        "replay": [replayed.matches, replayed.sentence],
        "verify": store.problems(),
    }
    with store.claim():
        store.compact()
    after = Store(store.folder)
    return found | {"null, compacted": nulls(after), "verify, compacted": after.problems()}


def main(folder, page):
    torch.set_num_threads(1)
    registry.load_packaged()
    jobs = [job(0.01), job(0.03)]
    said = {"columns": measures.COLUMNS, "by hand": [by_hand(one) for one in jobs]}
    said["loop"] = [engines.run(one).rows[:, -1].tolist() for one in jobs]
    said["lanes"] = [made.rows[:, -1].tolist() for made in lanes.run(jobs)]
    made = lanes.run(jobs, native=True)
    assert {one.engine for one in made} == {lanes.NATIVE}
    said["native"] = [one.rows[:, -1].tolist() for one in made]
    said["others"] = engines.run(job(0.01, "float32")).rows[:, :-1].tolist()
    asked = study.parse("measured", page, folder)
    stores = {"older": Store(folder / "older")}
    for engine in ("loop", "batched"):
        store = stores[f"by {engine}"] = Store.create(folder / engine, asked.name, asked.text)
        with store.claim():
            protocol.run(asked, store, protocol.Options(engine=engine, workers=1, throughput=False))
    sys.stdout.write(
        json.dumps(said | {name: seen(Store(store.folder)) for name, store in stores.items()})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8"))
