"""Every source against the contract of `clsearch.data.base`, and what sources refuse."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import SOURCES, load_source, make_source
from torch import Tensor

import clsearch.data
from clsearch.data import digits
from clsearch.data._torchvision import torchvision
from clsearch.data.base import Samples, as_samples, data_root
from clsearch.errors import InputError
from clsearch.scenarios.base import InputTransform

PACKAGE = Path(clsearch.data.__file__).parents[1]


# --- the contract, for every source ---------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_samples_have_the_contracts_form(name: str) -> None:
    raw = load_source(name)
    for part in (raw.train, raw.test):
        if part is None:
            continue
        assert part.inputs.dtype == torch.uint8
        assert part.inputs.ndim == 4
        assert part.inputs.is_contiguous()
        assert part.inputs.shape[1:] == raw.train.inputs.shape[1:]
        assert part.labels.dtype == torch.int64
        assert part.labels.shape == (len(part),)
        assert part.labels.unique().tolist() == list(range(len(raw.classes)))
    assert len(set(raw.classes)) == len(raw.classes)


@pytest.mark.parametrize("name", SOURCES)
def test_normalised_pixels_have_mean_0_and_deviation_1(name: str) -> None:
    raw = load_source(name)
    channels = raw.train.inputs.shape[1]
    assert len(raw.mean) == len(raw.std) == channels
    pixels = raw.train.inputs[:10_000]
    assert int(pixels.max()) == raw.scale
    x = InputTransform(raw.scale, raw.mean, raw.std).normalise(pixels).transpose(0, 1).flatten(1)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean(1), torch.zeros(channels), atol=0.01, rtol=0)
    torch.testing.assert_close(x.std(1), torch.ones(channels), atol=0.01, rtol=0)


def test_digits_are_the_same_at_every_load_and_touch_no_global_generator() -> None:
    state = torch.get_rng_state()
    first, again = (SOURCES["digits"]().load(Path("unused"), download=False) for _ in range(2))
    assert first.train.digest() == again.train.digest()
    assert torch.equal(state, torch.get_rng_state())
    assert first.train.inputs.shape == (1797, 1, 8, 8)
    assert first.test is None


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_whole_set_is_read(name: str) -> None:
    raw = load_source(name)
    assert raw.test is not None
    assert raw.train.inputs.shape == (60_000, 1, 28, 28)
    assert raw.test.inputs.shape == (10_000, 1, 28, 28)


def test_class_names_agree_with_torchvision() -> None:
    datasets = torchvision().datasets
    assert list(SOURCES["fashion_mnist"].classes) == datasets.FashionMNIST.classes
    for short, long in zip(SOURCES["mnist"].classes, datasets.MNIST.classes, strict=True):
        assert long.startswith(f"{short} - ")


# --- small parts ----------------------------------------------------------------------------


def test_digest_sees_every_pixel_label_and_the_shape() -> None:
    samples = as_samples(torch.arange(24, dtype=torch.uint8).view(2, 3, 4), torch.tensor([0, 1]))
    assert samples.inputs.shape == (2, 1, 3, 4)
    other_pixel = samples.inputs.clone()
    other_pixel[1, 0, 2, 3] += 1
    variants = [
        samples,
        Samples(other_pixel, samples.labels),
        Samples(samples.inputs, torch.tensor([1, 0])),
        Samples(samples.inputs.view(2, 1, 4, 3), samples.labels),
        samples[torch.tensor([1, 0])],
    ]
    assert len({v.digest() for v in variants}) == len(variants)
    assert samples[torch.tensor([0, 1])].digest() == samples.digest()


def test_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLSEARCH_DATA", raising=False)
    assert data_root(None) == Path("data")
    monkeypatch.setenv("CLSEARCH_DATA", "elsewhere")
    assert data_root(None) == Path("elsewhere")
    assert data_root("given") == Path("given")


# --- torchvision ----------------------------------------------------------------------------


def python(code: str) -> str:
    """What a fresh Python process prints; warnings are errors there too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_search_of_digits_imports_no_more_than_it_needs() -> None:
    """scikit-learn and torch's compiler take seconds each, in every process that imports them."""
    python(
        "import sys, tempfile\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, 'tests')\n"
        "from helpers import searched\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    searched(Path(folder), scenario={'name': 'permuted', 'tasks': 1})\n"
        "assert {'sklearn', 'torch._dynamo', 'matplotlib'}.isdisjoint(sys.modules)\n"
    )


def test_digits_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without importing it, and through it where it keeps the file elsewhere."""
    from sklearn.datasets import load_digits

    bunch, source = load_digits(), make_source("digits")
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    for file in (digits.FILE, "elsewhere.csv.gz"):
        monkeypatch.setattr(digits, "FILE", file)
        found = source.load(Path("unused"), download=False).train
        assert torch.equal(found.inputs, images)
        assert torch.equal(found.labels, torch.from_numpy(bunch.target))


def test_torchvision_is_imported_on_first_use_only() -> None:
    out = python(
        "import sys\n"
        "from clsearch.plugins import discover\n"
        "from clsearch.data.base import Source\n"
        "from clsearch.scenarios.base import Scenario\n"
        "discover('clsearch.data', Source); discover('clsearch.scenarios', Scenario)\n"
        "assert 'torchvision' not in sys.modules\n"
        "assert 'sklearn' not in sys.modules\n"
        "from clsearch.data._torchvision import torchvision\n"
        "assert torchvision() is torchvision() is sys.modules['torchvision']\n"
        "import torch\n"
        "from torchvision.transforms import v2\n"
        "print(v2.Resize((4, 4))(torch.zeros(1, 8, 8)).shape[-1])\n"
    )
    assert out.strip() == "4"


def test_operators_that_exist_are_left_alone() -> None:
    out = python(
        "import torch\n"
        "from torch import library\n"
        "from clsearch.data import _torchvision\n"
        "_torchvision._load_compiled()\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n"
        "    own = library.Library('torchvision', 'DEF')\n"
        "    for name in ('nms', 'qnms'):\n"
        "        own.define(name + _torchvision._SCHEMA)\n"
        "_torchvision._declare = None\n"
        "print(_torchvision.torchvision().__name__)\n"
    )
    assert out.strip() == "torchvision"


def test_one_module_imports_torchvision() -> None:
    pattern = re.compile(r"^\s*(import|from) torchvision|import_module\(.torchvision", re.M)
    found = [p.name for p in PACKAGE.rglob("*.py") if pattern.search(p.read_text())]
    assert found == ["_torchvision.py"]


# --- what the IDX sources refuse ------------------------------------------------------------


def idx(values: Tensor) -> bytes:
    """A uint8 tensor as an IDX file: two zeros, the type, the number of sizes, sizes, bytes."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.numpy().tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`MNIST/raw` with 20 training and 10 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    for part, n in (("train", 20), ("t10k", 10)):
        images = torch.randint(0, 256, (n, 28, 28), generator=rng, dtype=torch.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(torch.arange(n).byte() % 10))
    return raw


def refused(root: Path, download: bool = False) -> str:
    """The message that MNIST in `root` is refused with, one line naming the option and folder."""
    with pytest.raises(InputError) as caught:
        SOURCES["mnist"]().load(root, download)
    message = str(caught.value)
    assert message.startswith("scenario.download" if download else "scenario.root")
    assert "\n" not in message
    assert str(root) in message
    return message


def test_a_small_set_is_read(folder: Path) -> None:
    raw = SOURCES["mnist"]().load(folder.parents[1], download=False)
    assert raw.test is not None
    assert (len(raw.train), len(raw.test)) == (20, 10)
    stored = (folder / "train-images-idx3-ubyte").read_bytes()[16:]
    assert raw.train.inputs.numpy().tobytes() == stored


def test_a_missing_folder_says_what_belongs_there(tmp_path: Path) -> None:
    message = refused(tmp_path / "nowhere")
    for part in ("MNIST/raw", "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        assert part in message
    assert "`download: true`" in message


def test_packed_files_alone_say_what_to_do(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.rename(file.with_name(file.name + ".gz"))
    message = refused(folder.parents[1])
    assert ".gz files are there" in message
    assert "without a network" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train-images-idx3-ubyte", idx(torch.zeros(20, 27, 28).byte()), "28x28"),
        ("t10k-images-idx3-ubyte", idx(torch.zeros(10, 32, 32).byte()), "28x28"),
        ("train-images-idx3-ubyte", idx(torch.zeros(19, 28, 28).byte()), "as many labels"),
        ("train-labels-idx1-ubyte", idx(torch.full((20,), 10).byte()), "labels from 0 to 9"),
        ("train-images-idx3-ubyte", idx(torch.zeros(20, 28, 28).byte())[:-1], "undamaged"),
        ("train-labels-idx1-ubyte", idx(torch.zeros(20).byte())[:6], "undamaged"),
        ("t10k-images-idx3-ubyte", b"", "undamaged"),
        ("t10k-images-idx3-ubyte", b"not an IDX file at all", "undamaged"),
        ("t10k-labels-idx1-ubyte", b"\xff" * 40, "undamaged"),
    ],
)
def test_damaged_files_are_refused(folder: Path, name: str, content: bytes, expected: str) -> None:
    (folder / name).write_bytes(content)
    message = refused(folder.parents[1])
    assert expected in message
    assert name in message


def test_a_damaged_packed_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = folder.parents[1] / "mirror"
    monkeypatch.setattr(torchvision().datasets.MNIST, "mirrors", [nowhere.as_uri() + "/"])
    for file in list(folder.iterdir()):
        file.rename(file.with_name(file.name + ".gz"))
    assert "train-images-idx3-ubyte.gz" in refused(folder.parents[1], download=True)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("")
    refused(root)
    refused(root, download=True)


def test_pickled_files_of_old_versions_are_not_read(folder: Path) -> None:
    processed = folder.parent / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), processed / name)
    assert len(SOURCES["mnist"]().load(folder.parents[1], download=False).train) == 20
