"""What a network says of canonical images: logits and embeddings."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from medtl_models.ensemble import Classifier
from medtl_models.network import Network, Outputs
from medtl_runtime.recipe import as_batch
from medtl_train.errors import MemoryTooSmall
from medtl_train.fitting.memory import unless_too_large
from medtl_train.fitting.staging import Pixels

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

    Raises
    ------
    MemoryTooSmall
        Not even one image fits into the GPU's memory. Batches are halved until they do.
    """
    given = _outputs(network, pixels, device, rows)
    parts = [out.logits.float().cpu().numpy() for out in given]
    return np.concatenate(parts)


@torch.inference_mode()
def predict_embeddings(
    network: Network,
    pixels: Pixels,
    device: torch.device,
    rows: slice = slice(None),
) -> NDArray[np.float32]:
    """Return the pooled features of canonical images, N x D; see `predict_logits`."""
    given = _outputs(network, pixels, device, rows)
    parts = [out.embedding.float().cpu().numpy() for out in given]
    return np.concatenate(parts)


def _outputs(
    network: Classifier, pixels: Pixels, device: torch.device, rows: slice
) -> Iterator[Outputs]:
    network.eval()
    start, end, _ = rows.indices(len(pixels))
    size = EVALUATION_BATCH
    while start < end:
        batch = torch.from_numpy(as_batch(pixels[start : min(start + size, end)]))
        outputs = unless_too_large(lambda images=batch: network(images.to(device)))
        if outputs is not None:
            yield outputs
            start += len(batch)
        elif len(batch) > 1:
            size = len(batch) // 2
        else:
            raise MemoryTooSmall(
                "not even one image fits into the GPU's memory; expected a smaller --size, a "
                "smaller --arch, or a GPU that nothing else uses"
            )
