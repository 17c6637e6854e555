"""Weights come from torchvision's files or another network, whole or not at all."""

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import IMAGENET_MEAN, IMAGENET_STD, Network
from medtl_models.weights import (
    WeightsUnfit,
    fetch_imagenet,
    imagenet_file,
    load_file,
    load_imagenet,
    load_network,
)

# Where torchvision's own forward pass hands over the features, and whether going in or coming out.
HANDED_OVER = {
    "resnet18": ("fc", "in"),
    "resnet34": ("fc", "in"),
    "resnet50": ("fc", "in"),
    "vgg16": ("avgpool", "in"),
    "densenet121": ("classifier", "in"),
    "mobilenet_v2": ("classifier", "in"),
    "mobilenet_v3_small": ("classifier", "in"),
    "mobilenet_v3_large": ("classifier", "in"),
    "efficientnet_b0": ("classifier", "in"),
    "convnext_tiny": ("classifier.0", "out"),
    "regnet_y_400mf": ("fc", "in"),
    "squeezenet1_1": ("classifier", "in"),
}
# No padding before the first convolution, hence no border to agree on.
NO_BORDER = ("squeezenet1_1", "convnext_tiny")


def make(arch: str = "squeezenet1_1", **changes) -> Network:
    arguments = {"logits": 2, "channels": 3, "head": "linear", "dropout": 0.0, **changes}
    return Network(arch, **arguments).eval()


def normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


@torch.no_grad()
def pooled_by_torchvision(model: nn.Module, arch: str, batch: Tensor) -> Tensor:
    """Run torchvision's own forward pass and return the pooled features on its way."""
    name, side = HANDED_OVER[arch]
    seen = []
    module = model.get_submodule(name)
    hook = module.register_forward_hook(
        lambda _, given, found: seen.append(given[0] if side == "in" else found)
    )
    model(batch)
    hook.remove()
    return seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]


def old_densenet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of DenseNet files of 2017, which torchvision's URLs still serve."""
    names = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))(\d)\.")
    return {names.sub(r"\1.\2.", name): tensor for name, tensor in state.items()}


def write_weights(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Write a state dict of torchvision's layout; VGG's half gigabyte of classifier is cut."""
    cut = isinstance(model, models.VGG)
    state = {
        name: tensor[:1, :1].clone() if cut and name.endswith("r.0.weight") else tensor
        for name, tensor in model.state_dict().items()
        if not (cut and name.startswith(("classifier.3", "classifier.6")))
    }
    torch.save(state, path)
    return state


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loaded_features_are_those_that_torchvision_computes(
    arch: str, tmp_path: Path, lively: Callable
) -> None:
    torch.manual_seed(2)
    model = lively(models.get_model(arch, weights=None))
    state = write_weights(model, tmp_path / "weights.pth")
    network = make(arch)
    loaded = load_file(network, tmp_path / "weights.pth")

    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = normalised(image)
    stem = model.get_submodule(ARCHITECTURES[arch].stem)
    if arch in NO_BORDER:
        assert stem.padding == (0, 0)
    else:
        # torchvision's border is the mean colour, medtl's is black: give it medtl's.
        rows, columns = stem.padding
        batch = normalised(F.pad(image, (columns, columns, rows, rows)))
        stem.padding = (0, 0)
    expected = pooled_by_torchvision(model, arch, batch)
    with torch.no_grad():
        found = network(image).embedding
    assert float(expected.std(0).max()) > 0
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)

    last = "classifier.2." if arch == "convnext_tiny" else ("fc.", "classifier.")
    skipped = [name for name in state if name.startswith(last)]
    assert [line.split(" ")[0] for line in loaded.skipped] == skipped
    assert skipped
    assert loaded.tensors == len(state) - len(skipped)


@torch.no_grad()
def test_inside_its_border_the_stem_agrees_with_torchvision(tmp_path: Path) -> None:
    model = models.resnet18(weights=None).eval()
    write_weights(model, tmp_path / "weights.pth")
    network = make("resnet18")
    load_file(network, tmp_path / "weights.pth")
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    theirs = model.conv1(normalised(image))
    ours = network.stem(network.canonical_input(image))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=1e-5)
    assert not torch.allclose(ours, theirs, atol=1e-2)


def test_densenet_files_of_2017_load_as_those_of_today(tmp_path: Path) -> None:
    state = models.densenet121(weights=None).state_dict()
    former = old_densenet(state)
    changed = former.keys() - state.keys()
    assert len(changed) == 58 * 2 * 6  # 58 layers of two norms with five tensors and a convolution
    torch.save(former, tmp_path / "old.pth")
    network = make("densenet121")
    loaded = load_file(network, tmp_path / "old.pth")
    own = network.backbone.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)
    assert loaded.tensors == len(own)


def test_the_real_squeezenet_loads_and_leaves_its_classifier(real_squeezenet: Path) -> None:
    network = make(channels=1)
    loaded = load_file(network, real_squeezenet)
    assert loaded.tensors == 50
    assert loaded.source == str(real_squeezenet)
    assert loaded.skipped == (
        "classifier.1.weight (1000, 512, 1, 1): not part of the backbone",
        "classifier.1.bias (1000,): not part of the backbone",
    )
    model = models.squeezenet1_1(weights=None).eval()
    model.load_state_dict(torch.load(real_squeezenet, weights_only=True))
    image = torch.rand(2, 1, 80, 64, generator=torch.Generator().manual_seed(0))
    rgb = normalised(image.expand(-1, 3, -1, -1))
    with torch.no_grad():
        found = network(image).embedding
    torch.testing.assert_close(found, pooled_by_torchvision(model, "squeezenet1_1", rgb))


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = models.resnet18(weights=None).state_dict()
    former = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert len(former) < len(state)
    torch.save(former, tmp_path / "older.pth")
    assert load_file(make("resnet18"), tmp_path / "older.pth").tensors == len(former) - 2


class Planted:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def plant(path: Path) -> None:
    torch.save({"features.0.weight": Planted(path.with_name("planted"))}, path)


def plant_plainly(path: Path) -> None:
    path.write_bytes(pickle.dumps(Planted(path.with_name("planted")), protocol=2))


def cut_short(path: Path) -> None:
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    path.write_bytes(path.read_bytes()[:200_000])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "cut short": cut_short,
    "a list": lambda path: torch.save([torch.zeros(1)], path),
    "one tensor": lambda path: torch.save(torch.zeros(1), path),
    "nested": lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path),
    "numbered": lambda path: torch.save({0: torch.zeros(1)}, path),
    "an empty dict": lambda path: torch.save({}, path),
    "a torch file with code": plant,
    "a pickle with code": plant_plainly,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_holds_no_state_dict_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    DAMAGE[damage](path)
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsUnfit, match=re.escape(str(path))):
        load_file(network, path)
    assert not (tmp_path / "planted").exists()
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_planted_code_would_run_where_files_are_trusted(tmp_path: Path) -> None:
    plant(tmp_path / "weights.pth")
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "planted").exists()  # so the test above could fail


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.pth"
    torch.save(models.resnet34(weights=None).state_dict(), path)
    network = make("resnet50")
    with pytest.raises(WeightsUnfit, match=r"resnet34\.pth does not fit resnet50: .* the first is"):
        load_file(network, path)


def test_one_tensor_of_another_shape_is_enough_to_refuse(tmp_path: Path) -> None:
    state = models.squeezenet1_1(weights=None).state_dict()
    state["features.3.squeeze.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "weights.pth")
    expected = r"1 of 50 tensors .* features\.3\.squeeze\.bias"
    with pytest.raises(WeightsUnfit, match=expected):
        load_file(make(), tmp_path / "weights.pth")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give torch an empty cache, and no way to fill it from a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub home"))
    for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    return tmp_path / "hub home" / "hub" / "checkpoints"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_imagenet_offline_says_which_file_to_put_where(arch: str, hub: Path) -> None:
    url = models.get_model_weights(arch).DEFAULT.url
    with pytest.raises(WeightsUnfit) as refused:
        fetch_imagenet(arch, offline=True)
    assert url in str(refused.value)
    assert str(hub / url.rpartition("/")[2]) in str(refused.value)
    assert "--offline" in str(refused.value)


def test_a_download_that_fails_says_which_file_to_put_where(hub: Path) -> None:
    with pytest.raises(WeightsUnfit, match="cannot be downloaded") as refused:
        fetch_imagenet("squeezenet1_1", offline=False)
    assert str(imagenet_file("squeezenet1_1")) in str(refused.value)
    assert not list(hub.glob("*"))


@pytest.mark.parametrize("offline", [True, False])
def test_a_file_put_into_the_cache_is_used(offline: bool, hub: Path) -> None:
    model = models.squeezenet1_1(weights=None)
    hub.mkdir(parents=True)
    torch.save(model.state_dict(), imagenet_file("squeezenet1_1"))
    network = make()
    loaded = load_imagenet(network, offline=offline)
    assert loaded.source == "imagenet (squeezenet1_1-b8a52dc0.pth)"
    assert loaded.tensors == 50
    own, theirs = network.backbone.state_dict(), model.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_the_real_weights_work_from_the_cache(real_squeezenet: Path, hub: Path) -> None:
    hub.mkdir(parents=True)
    shutil.copy(real_squeezenet, imagenet_file("squeezenet1_1"))
    assert load_imagenet(make(), offline=True).tensors == 50


def test_a_damaged_file_in_the_cache_is_named(hub: Path) -> None:
    hub.mkdir(parents=True)
    path = imagenet_file("squeezenet1_1")
    path.write_bytes(b"half a download")
    with pytest.raises(WeightsUnfit, match=re.escape(str(path))):
        load_imagenet(make(), offline=True)


def test_another_network_of_the_same_classes_brings_its_head() -> None:
    source, network = make(logits=3), make(logits=3)
    state = source.state_dict()
    loaded = load_network(network, state, source="runs/one", same_classes=True)
    assert loaded.skipped == ()
    assert loaded.tensors == len(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("source", "target", "same_classes", "reasons"),
    [
        (
            {"logits": 2},
            {"logits": 2},
            False,
            ["weight (2, 512): trained for other classes", "bias (2,): trained for other classes"],
        ),
        (
            {"logits": 3},
            {"logits": 2},
            False,
            ["weight (3, 512): (2, 512) is expected", "bias (3,): (2,) is expected"],
        ),
    ],
)
def test_a_head_for_other_classes_is_dropped_and_each_tensor_reported(
    source: dict, target: dict, same_classes: bool, reasons: list[str]
) -> None:
    state = make(**source).state_dict()
    network = make(**target)
    head = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
    loaded = load_network(network, state, source="runs/one", same_classes=same_classes)
    assert list(loaded.skipped) == [f"head.linear.{reason}" for reason in reasons]
    assert loaded.tensors == 50
    assert all(torch.equal(t, head[name]) for name, t in network.head.state_dict().items())
    backbone = network.backbone.state_dict()
    assert all(torch.equal(t, state[f"backbone.{name}"]) for name, t in backbone.items())


def test_a_head_of_another_kind_is_dropped_whole() -> None:
    state = make(head="mlp").state_dict()
    network = make(head="linear")
    loaded = load_network(network, state, source="runs/one", same_classes=True)
    assert [line.partition(": ")[0] for line in loaded.skipped] == [
        "head.hidden.weight (1024, 512)",
        "head.hidden.bias (1024,)",
        "head.linear.weight (2, 1024)",
        "head.linear.bias (2,)",
    ]
    reasons = [line.partition(": ")[2] for line in loaded.skipped]
    assert reasons[0] == reasons[1] == "another kind of head"
    assert reasons[2] == "(2, 512) is expected"


def test_a_network_of_another_architecture_is_refused() -> None:
    state = make("mobilenet_v3_small").state_dict()
    with pytest.raises(WeightsUnfit, match="runs/one does not fit squeezenet1_1"):
        load_network(make(), state, source="runs/one", same_classes=True)
