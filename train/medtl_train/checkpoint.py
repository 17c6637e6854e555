"""Checkpoints: tensors and JSON text, so that ``torch.load(weights_only=True)`` reads them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medtl_models.ensemble import Classifier, Ensemble
from medtl_models.network import HeadKind, Network
from medtl_runtime.errors import UsageError
from medtl_runtime.files import written_whole
from medtl_runtime.heads import Head, width
from medtl_runtime.recipe import Recipe
from medtl_train.errors import CheckpointUnusable

FORMAT = "medtl-checkpoint"
VERSION = 3


@dataclass(frozen=True, kw_only=True)
class About:
    """What a network is and what it was trained on."""

    arch: str
    head: HeadKind
    dropout: float
    heads: tuple[Head, ...]
    recipe: Recipe
    fingerprint: str
    """Of the data; see `Dataset.fingerprint`."""
    members: int = 1
    """Networks whose answers are averaged."""

    def to_json(self) -> str:
        """Return it as a JSON document."""
        heads = [head.to_json() for head in self.heads]
        document = {**vars(self), "heads": heads, "recipe": self.recipe.to_json()}
        return json.dumps(document, sort_keys=True, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "About":
        """Read what `to_json` wrote; raises KeyError, TypeError, ValueError on anything else."""
        document = json.loads(text)
        recipe = Recipe.from_json(document.pop("recipe"))
        heads = tuple(Head.from_json(head) for head in document.pop("heads"))
        return About(recipe=recipe, heads=heads, **document)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the only head."""
        (head,) = self.heads
        return head.classes

    def build(self) -> Classifier:
        """Return the network, or the ensemble of networks, with random weights."""
        networks = [self.build_member() for _ in range(self.members)]
        return networks[0] if len(networks) == 1 else Ensemble(networks)

    def build_member(self) -> Network:
        """Return one network with random weights."""
        return Network(
            self.arch,
            logits=width(self.heads),
            channels=self.recipe.channels,
            head=self.head,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A network's weights, what it is, and in ``last.pt`` the state of its training."""

    about: About
    network: dict[str, Tensor]
    training: dict[str, Any] | None = None

    def restore(self) -> Classifier:
        """Return the network, or the ensemble, with its weights, ready for evaluation.

        Raises
        ------
        UsageError
            The tensors are not those of the network that the checkpoint describes.
        """
        try:
            network = self.about.build()
            network.load_state_dict(self.network)
        except (RuntimeError, KeyError, TypeError, AttributeError) as cause:
            raise UsageError(f"a checkpoint whose tensors do not fit {self.about.arch}") from cause
        return network.eval()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole.

    Raises
    ------
    OutputNotWritten
        The disk is full or the place not writable; an older file of that name stays.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "about": checkpoint.about.to_json(),
        "network": checkpoint.network,
        "training": checkpoint.training,
    }
    with written_whole(path) as part:
        try:
            torch.save(document, part)
        except RuntimeError as cause:  # how torch reports a full disk
            raise OSError(None, str(cause)) from cause


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CheckpointUnusable
        No such file, damaged, not medtl's, or of another version.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as cause:
        raise CheckpointUnusable(path, "there is no such file") from cause
    except Exception as cause:  # torch raises many kinds on damaged files
        raise CheckpointUnusable(path, "damaged, or not a checkpoint") from cause
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointUnusable(path, "a file of another program")
    if document.get("version") != VERSION:
        raise CheckpointUnusable(
            path, f"version {document.get('version')}; this medtl reads version {VERSION}"
        )
    try:
        about = About.from_json(document["about"])
        checkpoint = Checkpoint(
            about=about, network=document["network"], training=document["training"]
        )
    except (LookupError, TypeError, ValueError, AttributeError) as cause:
        raise CheckpointUnusable(path, f"malformed ({cause})") from cause
    return checkpoint


def load_run(run: Path) -> Checkpoint:
    """Read the best checkpoint of a run's folder.

    Raises
    ------
    UsageError
        No such folder, or no ``best.pt`` in it.
    CheckpointUnusable
        As `load` does.
    """
    if not run.is_dir():
        raise UsageError(f"{run}: no such run; expected a folder that medtl-train wrote")
    if not (run / "best.pt").is_file():
        raise UsageError(f"{run} holds no best.pt; has its training begun?")
    return load(run / "best.pt")
