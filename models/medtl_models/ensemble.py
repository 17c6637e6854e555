"""Several networks that answer as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medtl_models.network import Network, Outputs, fold_input


class Ensemble(nn.Module):
    """The mean of several networks of one architecture, for the same images.

    Logits are averaged, not probabilities: the mean over a class's map stays the class's logit,
    and one temperature calibrates the whole (Rahaman and Thiery, NeurIPS 2021, compare both).
    The embedding is that of all members side by side, N x (members D).
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        assert members
        self.members = nn.ModuleList(members)

    @property
    def arch(self) -> str:
        """The members' architecture."""
        first = self.members[0]
        assert isinstance(first, Network)
        return first.arch

    def forward(self, image_nchw: Tensor) -> Outputs:
        """Return logits, CAM and embedding."""
        each: list[Outputs] = [member(image_nchw) for member in self.members]
        return Outputs(
            logits=torch.stack([one.logits for one in each]).mean(0),
            cam=torch.stack([one.cam for one in each]).mean(0),
            embedding=torch.cat([one.embedding for one in each], 1),
        )


Classifier = Network | Ensemble
"""What answers for images: one network, or several as one."""


def folded(classifier: Classifier) -> Classifier:
    """Return the same function with `fold_input` done to every network in it."""
    if isinstance(classifier, Network):
        return fold_input(classifier)
    members = [member for member in classifier.members if isinstance(member, Network)]
    return Ensemble([fold_input(member) for member in members]).train(classifier.training)
