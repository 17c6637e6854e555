"""int8 files as other tools make them, for `export_frontier.py`, one in each process.

It runs in an environment of its own with nncf, onnxruntime, openvino and onnx, without medtl.
Images are an .npz with ``images``, N x C x H x W in [0, 1], and ``labels``, N.

    python benchmarks/peers.py ort-chain fp32.onnx calibration.npz validation.npz int8.onnx
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

PRODUCTS = ("Conv", "Gemm", "MatMul")
CHAIN = (*PRODUCTS, "Relu", "Clip", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
MAX_DROP = 0.005
PERCENTILE_IMAGES = 32  # Percentile keeps every activation of every image in memory


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a peer is given, and the file that it writes."""

    model: Path
    """The float model in ONNX, with the input ``image`` and the outputs of medtl's files."""
    images: np.ndarray
    """For calibration, N x C x H x W float32."""
    validation: Path
    output: Path


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool with its settings."""

    engine: str
    """What runs its file: onnxruntime or openvino."""
    make: Callable[[Job], None]

    @property
    def suffix(self) -> str:
        """Of the file that it writes."""
        return ".onnx" if self.engine == "onnxruntime" else ".xml"


def onnxruntime_static(
    *, operators: Iterable[str] | None = None, percentile: bool = False, **settings: Any
) -> Peer:
    """Return `quantize_static` after its own preprocessing; ``operators`` leave the head out."""

    def make(job: Job) -> None:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        if operators is not None:
            settings["op_types_to_quantize"] = list(operators)
        if percentile:
            settings["calibrate_method"] = CalibrationMethod.Percentile
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder, "prepared.onnx")
            quant_pre_process(str(job.model), str(prepared), skip_symbolic_shape=True)
            head = [node.name for node in onnx.load(prepared).graph.node if "cam" in node.output]
            quantize_static(
                str(prepared),
                str(job.output),
                reader(job.images[:PERCENTILE_IMAGES] if percentile else job.images),
                nodes_to_exclude=head if operators is not None else [],
                **settings,
            )

    return Peer(engine="onnxruntime", make=make)


def u8s8(**settings: Any) -> Peer:
    """Return the settings that ONNX Runtime's documentation advises for x86."""
    from onnxruntime.quantization import QuantType

    return onnxruntime_static(
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        **settings,
    )


def reader(images: np.ndarray) -> Any:
    """Return what `quantize_static` reads images from, one at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            image = next(self._left, None)
            return None if image is None else {"image": image[None]}

    return Reader()


def nncf_onnx(preset: str) -> Peer:
    """Return `nncf.quantize` of the ONNX model."""

    def make(job: Job) -> None:
        import onnx

        model = nncf().quantize(
            onnx.load(job.model), dataset(job.images), **nncf_settings(preset, job.images)
        )
        onnx.save(model, job.output)

    return Peer(engine="onnxruntime", make=make)


def nncf_openvino(preset: str) -> Peer:
    """Return `nncf.quantize` of the OpenVINO model."""

    def make(job: Job) -> None:
        import openvino

        model = nncf().quantize(
            openvino_model(job), dataset(job.images), **nncf_settings(preset, job.images)
        )
        openvino.save_model(model, job.output, compress_to_fp16=False)

    return Peer(engine="openvino", make=make)


def nncf_accuracy_control() -> Peer:
    """Return `nncf.quantize_with_accuracy_control` of the OpenVINO model, by validation AUROC."""

    def make(job: Job) -> None:
        import openvino

        with np.load(job.validation) as arrays:
            pairs = list(zip(arrays["images"], arrays["labels"], strict=True))
        model = nncf().quantize_with_accuracy_control(
            openvino_model(job),
            dataset(job.images),
            nncf().Dataset(pairs, lambda pair: pair[0][None]),
            auroc,
            max_drop=MAX_DROP,
            **nncf_settings("MIXED", job.images),
        )
        openvino.save_model(model, job.output, compress_to_fp16=False)

    return Peer(engine="openvino", make=make)


def nncf() -> Any:
    """Return the package, which is in the peers' environment only."""
    return import_module("nncf")


def nncf_settings(preset: str, images: np.ndarray) -> dict[str, Any]:
    """Return what `nncf.quantize` is called with."""
    return {
        "preset": nncf().QuantizationPreset[preset],
        "target_device": nncf().TargetDevice.CPU,
        "subset_size": len(images),
    }


def dataset(images: np.ndarray) -> Any:
    """Return images as NNCF reads them."""
    return nncf().Dataset(images, lambda image: {"image": image[None]})


def openvino_model(job: Job) -> Any:
    """Return OpenVINO's reading of the float model for one image at a time."""
    import openvino

    model = openvino.Core().read_model(job.model)
    model.reshape([1, *job.images.shape[1:]])
    return model


def auroc(model: Any, pairs: Iterable[tuple[np.ndarray, int]]) -> float:
    """Return the mean AUROC of each class against the rest."""
    from sklearn.metrics import roc_auc_score

    pairs = list(pairs)
    logits = np.concatenate([model({"image": image[None]})["logits"] for image, _ in pairs])
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    labels = np.array([label for _, label in pairs])
    return float(
        roc_auc_score(labels, shares / shares.sum(axis=1, keepdims=True), multi_class="ovr")
    )


def peers() -> dict[str, Peer]:
    """Return the peers by name."""
    return {
        "ort-defaults": onnxruntime_static(),
        "ort-u8s8": u8s8(),
        "ort-products": u8s8(operators=PRODUCTS),
        "ort-chain": u8s8(operators=CHAIN),
        "ort-chain-7bit": u8s8(operators=CHAIN, reduce_range=True),
        "ort-chain-percentile": u8s8(operators=CHAIN, percentile=True),
        "nncf-performance": nncf_onnx("PERFORMANCE"),
        "nncf-mixed": nncf_onnx("MIXED"),
        "nncf-openvino-performance": nncf_openvino("PERFORMANCE"),
        "nncf-openvino-mixed": nncf_openvino("MIXED"),
        "nncf-openvino-accuracy-control": nncf_accuracy_control(),
    }


def main() -> None:
    """Let one peer write its file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("peer")
    for name in ("model", "calibration", "validation", "output"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]
    with np.load(options.calibration) as arrays:
        images = arrays["images"]
    job = Job(
        model=options.model, images=images, validation=options.validation, output=options.output
    )
    peers()[options.peer].make(job)


if __name__ == "__main__":
    main()
