"""The sets of MedMNIST: the table, where a file lies, what is read of one that nobody vouches
for, and what a download leaves.
"""

import errno
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import tracemalloc
import urllib.request
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import sets
import warm
from click.testing import CliRunner

from clipbench import cli, datasets
from clipbench.errors import UsageError

PNEUMONIA = datasets.named("pneumoniamnist")


def clipbench(*args):
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args], prog_name="clipbench")


def look(file, dataset=PNEUMONIA):
    """Everything of a file that is ever read."""
    archive = datasets.opened(dataset, file, official=False)
    return {split: (archive.images(split), labels) for split, labels in archive.labels.items()}


# ---------------------------------------------------------------------------------------- the table


def test_every_file_has_an_md5_of_its_own():
    sums = [md5 for family in datasets.FAMILIES.values() for md5 in family.md5s]
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in sums)
    assert len(set(sums)) == len(sums) == 12 * len(datasets.SIZES)


def test_the_table_has_the_sums_that_are_cited_elsewhere():
    assert datasets.named("breastmnist").md5 == "750601b1f35ba3300ea97c75c52ff8f6"
    assert PNEUMONIA.md5 == "28209eda62fecd6e6a2d98b1501bb15f"


def test_a_set_is_named_by_its_files_stem():
    for name in ("pneumoniamnist", "pathmnist_64", "octmnist_128", "bloodmnist_224"):
        assert datasets.named(name).stem == name
    assert (
        datasets.named("pathmnist_64").url
        == "https://zenodo.org/records/10519652/files/pathmnist_64.npz?download=1"
    )


@pytest.mark.parametrize(
    "name", ["pneumonia", "PneumoniaMNIST", "pneumoniamnist_28", "pneumoniamnist_65"]
)
def test_an_unknown_set_gets_the_nearest_name(name):
    with pytest.raises(
        UsageError, match=f'no 2-D set "{name}" in MedMNIST. Did you mean pneumoniamnist?'
    ):
        datasets.named(name)


@pytest.mark.parametrize(
    ("name", "task"), [("chestmnist", "multi-label"), ("retinamnist_64", "ordinal-regression")]
)
def test_a_set_of_another_task_is_refused_by_name(name, task):
    with pytest.raises(
        UsageError,
        match=f"{name.partition('_')[0]} is for {task}, and only binary-class and multi-class",
    ):
        datasets.named(name)


# -------------------------------------------------------------------------------- where a file lies


def test_the_data_folder_is_what_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPBENCH_DATA", str(tmp_path / "mine"))
    assert datasets.folder() == tmp_path / "mine"
    monkeypatch.delenv("CLIPBENCH_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert datasets.folder() == tmp_path / "clipbench"


def test_the_home_of_nobody_is_one_sentence(monkeypatch):
    with pytest.raises(
        UsageError, match=r"path is ~nobody-of-that-name/a\.npz, and there is no such user here"
    ):
        datasets.located(PNEUMONIA, "~nobody-of-that-name/a.npz")
    monkeypatch.setenv("CLIPBENCH_DATA", "~nobody-of-that-name")
    with pytest.raises(
        UsageError, match="CLIPBENCH_DATA is ~nobody-of-that-name, and there is no such user here"
    ):
        datasets.folder()


def test_looking_creates_nothing(tmp_path):
    """Not on import, not by ``list``, ``data list`` or ``conform``."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CLIPBENCH_DATA", "XDG_DATA_HOME")
    }
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for command, code in ((["list"], 0), (["data", "list"], 0), (["conform", "medmnist"], 2)):
        done = warm.run("-m", "clipbench", *command, env=environment, cwd=tmp_path)
        assert done.returncode == code, done.stderr
    assert (
        "pneumoniamnist is not there; `clipbench data fetch pneumoniamnist` fetches it"
        in done.stderr
    )
    assert done.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_a_set_that_is_not_there_is_asked_for_with_its_size(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPBENCH_DATA", str(tmp_path))
    with pytest.raises(
        UsageError,
        match="`clipbench data fetch pathmnist --size 64` fetches it, or give its file as `path`",
    ):
        datasets.located(datasets.named("pathmnist_64"))
    with pytest.raises(UsageError, match=r"here\.npz: there is no such file"):
        datasets.located(PNEUMONIA, "here.npz")


def test_dermamnist_is_read_only_where_it_is_given(monkeypatch, tmp_path):
    """Its licence and its leak are said with the way past them."""
    monkeypatch.setenv("CLIPBENCH_DATA", str(tmp_path))
    derma = datasets.named("dermamnist")
    file = sets.write(tmp_path / "dermamnist.npz", "dermamnist")
    with pytest.raises(
        UsageError,
        match=r"CC BY-NC 4.0 .* leaks .* give its file as `path`; .* --accept-licence` fetches it",
    ):
        datasets.located(derma)
    assert look(datasets.located(derma, str(file)), derma)["train"][0].shape == (60, 28, 28, 3)


# ----------------------------------------------------------------------------------- reading a file


@pytest.mark.parametrize("stem", ["pneumoniamnist", "bloodmnist", "organamnist_64", "pathmnist_64"])
def test_a_file_of_the_set_is_read_as_it_was_written(tmp_path, stem):
    wrote = sets.arrays(stem)
    found = look(sets.write(tmp_path / "a.npz", stem), datasets.named(stem))
    for split, key in datasets.SPLITS.items():
        np.testing.assert_array_equal(found[split][0], wrote[f"{key}_images"])
        np.testing.assert_array_equal(found[split][1], wrote[f"{key}_labels"].ravel())


def test_a_file_found_by_name_must_be_the_published_one(tmp_path):
    file = sets.write(tmp_path / "pneumoniamnist.npz")
    with pytest.raises(
        UsageError,
        match=(
            r"its MD5 is [0-9a-f]{32}, and that of pneumoniamnist is "
            r"28209eda62fecd6e6a2d98b1501bb15f"
        ),
    ):
        datasets.opened(PNEUMONIA, file, official=True)


IMAGES, LABELS = sets.arrays()["train_images"], sets.arrays()["train_labels"]
BAD = {
    "a missing array": (
        {"val_labels": None},
        "no array val_labels in it; it has: test_images, test_labels, train_images",
    ),
    "an array under another name": (
        {"test_images": None, "test_imgs": IMAGES},
        "no array test_images in it; it has: test_imgs",
    ),
    "floats": (
        {"train_images": IMAGES / 255},
        "train_images is float64 of 60×28×28, and must be uint8 of N×28×28",
    ),
    "wide integers": (
        {"train_images": IMAGES.astype(np.int32)},
        "train_images is int32 of 60×28×28",
    ),
    "a structure": ({"train_images": np.zeros(60, [("a", "u1")])}, "train_images is"),
    "another size": (
        {"val_images": np.zeros((24, 30, 30), np.uint8)},
        "val_images is uint8 of 24×30×30",
    ),
    "the size of another file": (
        {"val_images": np.zeros((24, 64, 64), np.uint8)},
        'Did you mean dataset = "pneumoniamnist_64"?',
    ),
    "colours": (
        {"train_images": np.zeros((60, 28, 28, 3), np.uint8)},
        "train_images is uint8 of 60×28×28×3",
    ),
    "one image": (
        {"train_images": np.zeros((28, 28), np.uint8)},
        "train_images is uint8 of 28×28, and must be",
    ),
    "a number": ({"train_images": np.uint8(3)}, "train_images is uint8 of one number"),
    "no images": (
        {"test_images": IMAGES[:0], "test_labels": LABELS[:0]},
        "test_images has 0 images, and must have 1 to",
    ),
    "labels for other images": (
        {"train_labels": LABELS[:59]},
        "train_labels is uint8 of 59×1, and must be whole numbers of 60×1",
    ),
    "many labels an image": (
        {"train_labels": np.zeros((60, 14), np.uint8)},
        "train_labels is uint8 of 60×14",
    ),
    "labels in a row": (
        {"train_labels": LABELS.ravel()},
        "train_labels is uint8 of 60, and must be",
    ),
    "labels with a point": ({"train_labels": LABELS / 2}, "train_labels is float64 of 60×1"),
    "a label too high": (
        {"val_labels": np.full((24, 1), 2, np.uint8)},
        "val_labels has 2, and pneumoniamnist has 0 to 1",
    ),
    "a label below zero": (
        {"val_labels": np.full((24, 1), -1)},
        "val_labels has -1, and pneumoniamnist has 0 to 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_of_anything_else_is_refused_in_one_sentence(tmp_path, case):
    changes, sentence = BAD[case]
    with pytest.raises(UsageError, match=re.escape(sentence)) as raised:
        look(sets.write(tmp_path / "bad.npz", **changes))
    assert str(raised.value).startswith(str(tmp_path / "bad.npz"))


class Trap:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_python_objects_are_refused_and_never_made(tmp_path):
    trap = np.empty(1, object)
    trap[0] = Trap(str(tmp_path / "sprung"))
    np.savez(tmp_path / "bad.npz", **sets.arrays(train_labels=None), train_labels=trap)
    with pytest.raises(UsageError, match="train_labels holds Python objects"):
        look(tmp_path / "bad.npz")
    assert not (tmp_path / "sprung").exists()


def bomb(file, shape, claimed=None):
    """A file whose ``train_images`` says that it has this shape, and its directory that it has
    ``claimed`` bytes.
    """
    good = io.BytesIO()
    np.savez_compressed(good, **sets.arrays())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with (
        zipfile.ZipFile(good) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(
                name,
                header.getvalue() + bytes(1000)
                if name == "train_images.npy"
                else source.read(name),
            )
        if claimed:
            target.getinfo("train_images.npy").file_size = len(header.getvalue()) + claimed
    return file


@pytest.mark.parametrize(
    ("shape", "claimed", "sentence"),
    [
        (
            (10**7, 28, 28),
            None,
            "train_images says it is uint8 of 10000000×28×28, and is stored in",
        ),
        (
            (10**7, 28, 28),
            784 * 10**7,
            "train_images has 10000000 images, and must have 1 to 200000",
        ),
        (
            (10**5, 28, 28),
            784 * 10**5,
            "train_labels is uint8 of 60×1, and must be whole numbers of 100000×1",
        ),
    ],
)
def test_a_zip_bomb_is_refused_before_anything_is_allocated(tmp_path, shape, claimed, sentence):
    file = bomb(tmp_path / "bomb.npz", shape, claimed)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=sentence):
            look(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_images_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    file = sets.write(tmp_path / "a.npz")
    monkeypatch.setattr(datasets, "LARGEST", 4 * 108 * 784 - 1)
    with pytest.raises(UsageError, match=r"its images take 0\.0 GiB in float32, more than"):
        look(file)


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path):
    """Each is refused, or leaves every number as it was; nothing else is ever raised."""
    good = sets.write(tmp_path / "good.npz")
    raw, expected = good.read_bytes(), look(good)
    file = tmp_path / "bad.npz"
    draw = np.random.default_rng(1)
    damaged = [raw[:end] for end in draw.integers(0, len(raw), 40)]
    for place, bit in zip(draw.integers(0, len(raw), 400), draw.integers(0, 8, 400), strict=True):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << int(bit)
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            found = look(file)
        except UsageError:
            refused += 1
        else:
            assert all(
                np.array_equal(found[split][part], expected[split][part])
                for split in expected
                for part in (0, 1)
            )
    assert refused > 400


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file at all", bytes(5000)])
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"this is no \.npz file, or it is damaged or cut off"):
        look(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "header",
    [
        b"{[1]: 2}",
        b"{1: 2, 'a': 3}",
        b"{'descr': (), 'fortran_order': False, 'shape': (60,)}",
        b"-" * 9000,
    ],
)
def test_a_header_of_nonsense_is_refused(tmp_path, header):
    """What numpy takes it for is Python, and may raise anything."""
    file = sets.write(tmp_path / "bad.npz", train_images=None)
    with zipfile.ZipFile(file, "a") as archive:
        member = header.ljust(118 if len(header) < 118 else len(header) + 1) + b"\n"
        archive.writestr(
            "train_images.npy", b"\x93NUMPY\x01\x00" + len(member).to_bytes(2, "little") + member
        )
    with pytest.raises(UsageError, match=r"this is no \.npz file, or it is damaged or cut off"):
        look(file)


@pytest.mark.parametrize("way", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_compression_that_numpy_never_writes_is_refused(tmp_path, way):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", way) as archive:
        for key, array in sets.arrays().items():
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    with pytest.raises(UsageError, match="is compressed in a way that numpy never writes"):
        look(tmp_path / "a.npz")


def test_damage_within_the_images_is_found_before_they_are_asked_for(tmp_path):
    """Headers and labels are fine; the archive's own sums are not."""
    good = sets.write(tmp_path / "good.npz")
    datasets.opened(PNEUMONIA, good, official=False).sound()
    with zipfile.ZipFile(good) as archive:
        place = archive.getinfo("train_images.npy").header_offset + 2000
    raw = bytearray(good.read_bytes())
    raw[place] ^= 1
    good.write_bytes(raw)
    found = datasets.opened(PNEUMONIA, good, official=False)
    with pytest.raises(UsageError, match=r"this is no \.npz file, or it is damaged or cut off"):
        found.sound()


# ----------------------------------------------------------------------------------------- fetching


class Server(http.server.ThreadingHTTPServer):
    """Serves one body on the loopback, whole, corrupted, cut off or not at all, and counts who
    asks.
    """

    body, behaviour, asked = b"", "good", 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        if self.server.behaviour == "absent":
            self.send_error(404)
            return
        body = self.server.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.behaviour == "corrupted":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.wfile.write(body[: len(body) // 2] if self.server.behaviour == "cut off" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """In the place of the published one; what it serves has the MD5 of ``pneumoniamnist``."""
    known = datasets.FAMILIES["pneumoniamnist"]
    with Server(("127.0.0.1", 0), Handler) as running:
        running.body = sets.write(tmp_path / "served.npz").read_bytes()
        md5 = hashlib.md5(running.body, usedforsecurity=False).hexdigest()
        monkeypatch.setitem(
            datasets.FAMILIES, "pneumoniamnist", replace(known, md5s=(md5, *known.md5s[1:]))
        )
        monkeypatch.setattr(
            datasets.catalogue, "RECORD", f"http://127.0.0.1:{running.server_address[1]}"
        )
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_what_is_fetched_is_the_file_byte_for_byte_and_can_be_read(server, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "folder"
    monkeypatch.setenv("CLIPBENCH_DATA", str(folder))
    done = clipbench("data", "fetch", "pneumoniamnist")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [file.name for file in folder.iterdir()] == ["pneumoniamnist.npz"]
    assert (folder / "pneumoniamnist.npz").read_bytes() == server.body
    assert (
        look(datasets.located(PNEUMONIA))["test"][1].tolist()
        == sets.arrays()["test_labels"].ravel().tolist()
    )
    assert re.search(
        r"pneumoniamnist +binary-class, 2 labels, CC BY 4.0 +28\n", clipbench("data", "list").stdout
    )


def test_what_is_there_and_right_is_not_fetched_again(server, tmp_path):
    for _ in range(2):
        done = clipbench("data", "fetch", "pneumoniamnist", "--to", tmp_path / "to")
        assert done.exit_code == 0
    assert "it is there already, its MD5 is right" in done.stdout
    assert server.asked == 1


def test_another_file_of_that_name_is_neither_trusted_nor_replaced(server, tmp_path):
    (tmp_path / "pneumoniamnist.npz").write_bytes(b"mine")
    done = clipbench("data", "fetch", "pneumoniamnist", "--to", tmp_path)
    assert done.exit_code == 2
    assert "a file of that name is there" in done.stderr
    assert (tmp_path / "pneumoniamnist.npz").read_bytes() == b"mine"
    assert server.asked == 0


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("corrupted", "what came has the MD5 [0-9a-f]{32}, not [0-9a-f]{32}; it was not kept"),
        (
            "cut off",
            (
                r"the download (was cut off after \d+ of \d+ bytes|failed \(IncompleteRead.*\)); "
                r"nothing was kept"
            ),
        ),
        ("absent", r"the server answered 404 \(Not Found\); nothing was kept"),
    ],
)
def test_a_download_that_goes_wrong_leaves_nothing(server, tmp_path, behaviour, sentence):
    """One sentence, exit 2."""
    server.behaviour = behaviour
    done = clipbench("data", "fetch", "pneumoniamnist", "--to", tmp_path / "to")
    assert done.exit_code == 2
    assert re.search(sentence, done.stderr)
    assert done.stderr.count("\n") == 1
    assert [*(tmp_path / "to").iterdir()] == []


def test_a_server_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as gone:
        monkeypatch.setattr(
            datasets.catalogue, "RECORD", f"http://127.0.0.1:{gone.server_address[1]}"
        )
    done = clipbench("data", "fetch", "breastmnist", "--to", tmp_path / "to")
    assert done.exit_code == 2
    assert "the download failed (" in done.stderr
    assert [*(tmp_path / "to").iterdir()] == []


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was kept"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full"),
    ],
    ids=["an interrupt", "a full disk"],
)
def test_what_ends_a_download_half_way_leaves_nothing(
    server, tmp_path, monkeypatch, raised, code, sentence
):
    seen = []

    def pieces(url, whole=datasets._pieces):
        for piece in whole(url):
            yield piece
            seen.extend((tmp_path / "to").iterdir())
            raise raised

    monkeypatch.setattr(datasets, "_pieces", pieces)
    done = clipbench("data", "fetch", "pneumoniamnist", "--to", tmp_path / "to")
    assert (done.exit_code, len(seen)) == (code, 1)
    assert sentence in done.stderr
    assert [*(tmp_path / "to").iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pneumonia"], "Did you mean pneumoniamnist?"),
        (["retinamnist"], "retinamnist is for ordinal-regression"),
        (
            ["pathmnist", "--size", "128"],
            "pathmnist_128: its images take more than 16 GiB in float32; take a smaller size",
        ),
        (["dermamnist"], "licensed CC BY-NC 4.0 (no commercial use) and leaks"),
    ],
)
def test_a_name_that_is_not_fetched_touches_neither_network_nor_disk(
    server, tmp_path, arguments, sentence
):
    done = clipbench("data", "fetch", *arguments, "--to", tmp_path / "to")
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.asked == 0
    assert not (tmp_path / "to").exists()


def test_a_licence_can_be_accepted(server, tmp_path):
    """The server has no such file with the right sum: it was asked, and that is all."""
    done = clipbench("data", "fetch", "dermamnist", "--accept-licence", "--to", tmp_path / "to")
    assert "what came has the MD5" in done.stderr
    assert server.asked == 1


def test_more_bytes_than_any_set_has_end_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MOST_BYTES", len(server.body) - 1)
    done = clipbench("data", "fetch", "pneumoniamnist", "--to", tmp_path / "to")
    assert done.exit_code == 2
    assert "and no set is as large; nothing was kept" in done.stderr
    assert [*(tmp_path / "to").iterdir()] == []


@pytest.mark.parametrize("place", ["http://127.0.0.1/x", "ftp://127.0.0.1/x"])
def test_a_redirect_off_https_is_not_followed(place):
    handler, request = datasets._StayOnHttps(), urllib.request.Request("https://127.0.0.1/x")
    with pytest.raises(UsageError, match=f"sends us on to {place}, which is not https"):
        handler.redirect_request(request, None, 302, "Found", {}, place)
    onward = handler.redirect_request(request, None, 302, "Found", {}, "https://127.0.0.1/y")
    assert onward.full_url == "https://127.0.0.1/y"


def test_what_a_killed_download_left_is_swept_and_a_live_ones_is_not(server, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    left, lives = (
        tmp_path / f".bloodmnist-{gone.pid}.part",
        tmp_path / f".bloodmnist-{os.getpid()}.part",
    )
    for part in (left, lives):
        part.write_bytes(b"half")
    assert clipbench("data", "fetch", "pneumoniamnist", "--to", tmp_path).exit_code == 0
    assert not left.exists()
    assert lives.exists()
