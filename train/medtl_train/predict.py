"""What a network says of canonical images: logits and embeddings."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from medtl_models.ensemble import Classifier
from medtl_models.network import Network, Outputs
from medtl_runtime.recipe import as_batch
from medtl_train.staging import Pixels

EVALUATION_BATCH = 64


@torch.inference_mode()
def predict_logits(
    network: Classifier,
    pixels: Pixels,
    device: torch.device,
    rows: slice = slice(None),
) -> NDArray[np.float32]:
    """Return the logits of canonical images (N x C x H x W): N x the columns of all heads.

    Parameters
    ----------
    rows
        Images that are looked at, in a row.
    """
    given = _outputs(network, pixels, device, rows)
    parts = [out.logits.float().cpu().numpy() for out in given]
    return np.concatenate(parts)


@torch.inference_mode()
def predict_embeddings(
    network: Network, pixels: Pixels, device: torch.device
) -> NDArray[np.float32]:
    """Return the pooled features of canonical images (N x C x H x W): N x D."""
    parts = [out.embedding.float().cpu().numpy() for out in _outputs(network, pixels, device)]
    return np.concatenate(parts)


def _outputs(
    network: Classifier, pixels: Pixels, device: torch.device, rows: slice = slice(None)
) -> Iterator[Outputs]:
    network.eval()
    first, end, _ = rows.indices(len(pixels))
    for start in range(first, end, EVALUATION_BATCH):
        batch = as_batch(pixels[start : min(start + EVALUATION_BATCH, end)])
        yield network(torch.from_numpy(batch).to(device))
