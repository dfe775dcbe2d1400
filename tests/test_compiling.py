"""What the compiler of this machine makes is kept: made once for all processes, made anew if it is
damaged, and missed in one sentence if it cannot be made.
"""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipbench import compiling
from clipbench.compiling import NotCompiled

SOURCE = 'extern "C" int answer() { return %d; }'
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A compiler that notes every call but those for its version."""
    calls, script = tmp_path / "calls", tmp_path / "compiler"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || echo called >> {calls}\nexec {COMPILER} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    calls.touch()
    return lambda: len(calls.read_text().splitlines())


def answer(number, flags=((),)):
    return compiling.library(SOURCE % number, flags, "answer").answer()


def test_a_library_is_made_once_and_kept(cache, counted):
    assert [answer(7), answer(7), answer(8)] == [7, 7, 8]
    assert counted() == 2
    assert len(list(cache.glob("*.so"))) == 2


def test_other_flags_or_another_compiler_make_another(cache, counted, monkeypatch):
    assert answer(7) == answer(7, (("-O1",),)) == 7
    assert counted() == 2
    monkeypatch.setenv("CXX", str(COMPILER))
    assert answer(7) == 7
    assert len(list(cache.glob("*.so"))) == 3


def test_flags_are_tried_in_turn(cache):
    assert answer(7, (("-no-compiler-knows-this",), ())) == 7


@pytest.mark.parametrize("damage", ["cut", "changed", "without its digest", "no file"])
def test_a_damaged_library_is_made_anew(cache, counted, damage):
    assert answer(7) == 7
    (kept,) = cache.glob("*.so")
    made = kept.read_bytes()
    if damage == "cut":
        kept.write_bytes(made[: len(made) // 2])
    elif damage == "changed":
        kept.write_bytes(made[:-100] + bytes(100))
    elif damage == "no file":
        kept.unlink()
    else:
        kept.with_suffix(".sha256").unlink()
    again = "from test_compiling import answer; print(answer(7))"  # nothing is loaded there yet
    done = subprocess.run(
        [sys.executable, "-c", again], cwd=Path(__file__).parent, capture_output=True, check=True
    )
    assert done.stdout == b"7\n"
    assert counted() == 2


def test_processes_that_want_one_library_make_it_once(cache, counted):
    command = [sys.executable, "-c", "from test_compiling import answer; print(answer(9))"]
    started = [
        subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [one.communicate()[0] for one in started] == [b"9\n"] * 3
    assert counted() == 1


@pytest.mark.parametrize("place", ["a file is in its way", "nothing may be written"])
def test_without_a_place_to_keep_it_a_library_is_made_all_the_same(cache, place):
    if place == "a file is in its way":
        cache.parent.write_text("")
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        cache.mkdir(parents=True)
        cache.chmod(0o500)
    assert answer(7) == 7


def test_from_where_nothing_may_be_loaded_it_is_loaded_from_elsewhere(cache, monkeypatch):
    loaded = compiling.ctypes.CDLL

    def refused(path):
        if str(cache) in path:
            raise OSError("failed to map segment from shared object")
        return loaded(path)

    monkeypatch.setattr(compiling.ctypes, "CDLL", refused)
    assert answer(7) == 7


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("/nowhere/c++", "it cannot be started"),
        ("'c++", "the variable CXX is no command"),
        ("false", "false"),
        ("true", "it made no library"),
    ],
)
def test_a_compiler_that_fails_is_named_in_one_line(cache, monkeypatch, compiler, said):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(NotCompiled, match=said) as told:
        answer(7)
    assert "\n" not in str(told.value)


def test_no_compiler_is_told(cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotCompiled, match=r"no C\+\+ compiler was found"):
        answer(7)


def test_what_the_compiler_says_of_the_source_is_told(cache):
    with pytest.raises(NotCompiled, match="error"):
        compiling.library("this is no program", ((),), "none")


def test_a_compiler_that_hangs_is_ended(cache, tmp_path, monkeypatch):
    script = tmp_path / "slow"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nexec sleep 600\n')
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(compiling, "LIMIT", 0.5)
    with pytest.raises(NotCompiled, match="more than 0 seconds"):
        answer(7)


def test_the_cache_keeps_within_its_bounds_and_forgets_the_oldest(cache, monkeypatch):
    monkeypatch.setattr(compiling, "KEPT_FILES", 2)
    for number, age in ((1, 300), (2, 200), (3, 100)):
        answer(number)
        newest = max(cache.glob("*.so"), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - age,) * 2)
    assert len(list(cache.glob("*.so"))) == 2
    assert len(list(cache.glob("*.sha256"))) == 2
