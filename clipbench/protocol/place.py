"""The folder that a run fills: which one it is, that it belongs to the study, and that nothing is
left of one in which nothing came about.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipbench import study as study_
from clipbench.cell import unversioned
from clipbench.errors import UsageError, counted
from clipbench.store import Store, set_old_aside
from clipbench.study import Study

RESULTS = Path("results")


def own_folder(page: Study, packaged: bool, anew: bool = False) -> Path:
    """``results/NAME``, if what lies there is of the same study.

    :param packaged: whether the study is a packaged one; a page of the user's own must not bear
        the name of one.
    :raises UsageError: it does, or the folder's cells are all others.
    """
    folder = RESULTS / page.name
    if not packaged and page.name in study_.packaged():
        raise UsageError(
            f'{page.where}: "{page.name}" is the name of a packaged study; rename the page, or '
            f"choose a folder with --out."
        )
    if anew or not (folder / "study.toml").is_file():
        return folder
    stored = {
        unversioned(settings) for settings in Store(folder).read("cells")["settings"].dropna()
    }
    if stored and not any(unversioned(cell.canonical) in stored for cell in page.cells()):
        raise UsageError(
            f"{folder}: this folder has {counted(len(stored), 'cell')}, and {page.where} asks for "
            f"none of them; "
            "choose another folder with --out, or rename this one with --anew."
        )
    return folder


def opened(folder: Path, page: Study) -> Store | None:
    """The store in a folder, None if there is none yet.

    :raises UsageError: it is of another study.
    """
    if not (folder / "study.toml").is_file():
        return None
    store = Store(folder)
    held = store.held
    if held is not None and held != page.name:
        raise UsageError(
            f'{folder}: this folder holds the study "{held}", not "{page.name}"; choose another '
            f"with --out."
        )
    return store


def moved_aside(folder: Path, page: Study) -> Path | None:
    """The path to which the old results of a folder are renamed, None if it has none.

    :raises UsageError: they are of another study, or another run is filling the folder.
    """
    old = opened(folder, page)
    if old is None:
        return None
    with old.claim():
        return set_old_aside(folder)


@contextmanager
def claimed(folder: Path, page: Study) -> Iterator[Store]:
    """The store of a study in a folder, held for writing. A folder that is made here goes again if
    the run fails before anything was stored.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        store = Store.create(folder, page.name, page.text)
        with store.claim():
            yield store
    except Exception:
        if made and not any(folder.glob("*/*.parquet")):
            shutil.rmtree(folder, ignore_errors=True)
            for path in made[1:]:
                with suppress(OSError):  # somebody else keeps something there
                    path.rmdir()
        raise
