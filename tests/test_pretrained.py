"""AlexNet and VGG-16: torchvision's function, and weights from its files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_config, tiny_tasks
from safetensors.torch import save_file
from torch import Tensor, nn

from clsearch.errors import InputError
from clsearch.exports.files import load_export, save_export
from clsearch.exports.standalone import StandaloneModel
from clsearch.models._pretrained import Pretrained
from clsearch.models.alexnet import AlexNet, AlexNetOptions
from clsearch.models.base import forward, initial_head, initial_parameters
from clsearch.models.vgg16 import VGG16, VGG16Options
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform, Task
from clsearch.search.plan import trial_key
from clsearch.system import build_system

SMALL: dict[type[Pretrained], dict[str, Any]] = {
    AlexNet: {"channels": [5, 4, 6, 3, 8], "dense": [9, 7]},
    VGG16: {"channels": [5, 7, 9, 8, 8], "dense": [9, 7]},
}
SHAPES = {AlexNet: (3, 70, 66), VGG16: (3, 33, 40)}
each = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)


class Published(nn.Module):
    """Torch's own layers under torchvision's names."""

    def __init__(self, features: nn.Sequential, side: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier
        self.avgpool = nn.AdaptiveAvgPool2d(side)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return found


def published(kind: type[Pretrained], channels: list[int], dense: list[int]) -> nn.Module:
    a, b, c, d, e = channels
    one, two = dense
    torch.manual_seed(0)
    if kind is AlexNet:
        features = nn.Sequential(
            nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(e * 36, one), nn.ReLU(),
            nn.Dropout(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, 1000),
        )  # fmt: skip
        return Published(features, 6, classifier).eval()
    layers: list[nn.Module] = []
    inputs = 3
    for width, depth in zip(channels, (2, 2, 3, 3, 3), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    classifier = nn.Sequential(
        nn.Linear(e * 49, one), nn.ReLU(), nn.Dropout(),
        nn.Linear(one, two), nn.ReLU(), nn.Dropout(), nn.Linear(two, 1000),
    )  # fmt: skip
    return Published(nn.Sequential(*layers), 7, classifier).eval()


def saved(kind: type[Pretrained], folder: Path, suffix: str) -> tuple[nn.Module, str]:
    model = published(kind, **SMALL[kind])
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return model, str(path)


def made(kind: type[Pretrained], weights: str | None = None) -> Pretrained:
    return kind(kind.Options(**SMALL[kind], weights=weights), SHAPES[kind])


@each
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_compute_what_torchs_layers_do(
    kind: type[Pretrained], suffix: str, tmp_path: Path
) -> None:
    model, path = saved(kind, tmp_path, suffix)
    backbone = made(kind, path)
    params = initial_parameters(backbone, generator("pretrained"))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    params |= {"head.0.weight": last.weight.detach(), "head.0.bias": last.bias.detach()}
    x = torch.randn(3, *SHAPES[kind], generator=generator("images"))
    logits, _ = forward(backbone, params, x, 0, None)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)
    again = initial_parameters(backbone, generator("other"))
    assert all(torch.equal(params[name], value) for name, value in again.items())


@each
def test_the_default_is_as_published(kind: type[Pretrained]) -> None:
    """By the number of parameters that torchvision states, its output layer left out."""
    options = {AlexNet: AlexNetOptions(), VGG16: VGG16Options()}[kind]
    count = sum(p.numel() for p in kind(options, (3, 224, 224)).parameters())
    stated = {AlexNet: 61_100_840, VGG16: 138_357_544}[kind]
    assert count == stated - 1000 * 4096 - 1000


@each
def test_without_weights_they_are_drawn(kind: type[Pretrained]) -> None:
    backbone = made(kind)
    assert backbone.initial() == {}
    one, two = (initial_parameters(backbone, generator(name)) for name in ("a", "b"))
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_architecture_is_refused_by_one_error(suffix: str, tmp_path: Path) -> None:
    _, path = saved(AlexNet, tmp_path, suffix)
    with pytest.raises(InputError) as caught:
        made(VGG16, path).initial()
    assert (caught.value.field, caught.value.value) == ("model.weights", path)
    assert "torchvision's vgg16 with features.0.weight of 5x3x3x3" in caught.value.allowed
    assert "5x3x11x11" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no weights", pickle.dumps({"a": Path}, protocol=2)],
    ids=["missing", "empty", "text", "pickled"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights_are_refused(
    content: bytes | None, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        made(AlexNet, str(path)).initial()
    assert caught.value.field == "model.weights"


def test_the_download_is_torchvisions_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = published(AlexNet, **SMALL[AlexNet]), []

    def load(url: str, **options: Any) -> dict[str, Tensor]:
        asked.append((url, options["weights_only"], options["check_hash"]))
        return model.state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    backbone = made(AlexNet, "torchvision")
    assert torch.equal(backbone.initial()["fc2.bias"], model.get_parameter("classifier.4.bias"))
    assert asked == [(AlexNet.url, True, True)]
    assert backbone.initial_digest == AlexNet.url


def test_a_key_knows_weights_by_their_content(tmp_path: Path) -> None:
    tasks = tiny_tasks(1, False)

    def key(weights: str | None) -> str:
        model = {"name": "alexnet", **SMALL[AlexNet], "weights": weights}
        config = tiny_config("finetune", model=model)
        system = build_system(config, 0, (3, 64, 64))
        return trial_key(config, system, tasks, None, 0, False, {"lr": 0.1})

    def alexnet_for(folder: str, change: float = 0.0) -> str:
        (tmp_path / folder).mkdir()
        model, path = saved(AlexNet, tmp_path / folder, ".pth")
        state = model.state_dict()
        torch.save(state | {"features.0.bias": state["features.0.bias"] + change}, path)
        return path

    here, there, other = alexnet_for("a"), alexnet_for("b"), alexnet_for("c", 1.0)
    assert key(here) == key(there)
    assert len({key(None), key(here), key(other)}) == 3


@each
def test_an_exported_model_needs_no_weights_file(kind: type[Pretrained], tmp_path: Path) -> None:
    _, path = saved(kind, tmp_path, ".pth")
    backbone = made(kind, path)
    source = generator("export")
    params = initial_parameters(backbone, source)
    params |= initial_head(0, 2, backbone.features, source)
    transform = InputTransform(255.0, (0.5,) * 3, (0.25,) * 3)
    task = Task(1, "one", ("a", "b"), 0, SHAPES[kind], transform)
    save_export(tmp_path / "m.safetensors", StandaloneModel(backbone, params, 0, None, task), {})
    Path(path).unlink()
    answer, _ = load_export(tmp_path / "m.safetensors")
    pixels = torch.randint(0, 256, (2, *SHAPES[kind]), generator=source).float()
    expected, _ = forward(backbone, params, transform.normalise(pixels), 0, None)
    assert torch.equal(answer(pixels), expected)
