"""Who scans the phantoms: invented scanners that blur, store and label in different ways."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """An invented scanner: how it blurs, how it stores pixels, what it writes into a header."""

    manufacturer: str
    model: str
    blur_px: float
    """Standard deviation of the point spread."""
    noise_gain: float
    noise_grain_px: float
    """Correlation length of the noise."""
    bits_stored: int
    signed: bool
    intercept: int
    padding: int | None
    """Stored value outside the circular field of view; None where air is stored there."""
    fields_of_view_mm: tuple[int, ...]
    kvp: int
    slice_thickness_mm: float
    kernel: str
    windows: dict[str, list[tuple[float, float, str]]]
    """By organ: centre, width and explanation (PS3.3 C.11.2.1.2); all explained or none."""


SCANNERS = (
    Scanner(
        manufacturer="Phantom Scanner Works",
        model="Axial One",
        blur_px=0.65,
        noise_gain=1.0,
        noise_grain_px=0.55,
        bits_stored=12,
        signed=False,
        intercept=-1024,
        padding=None,
        fields_of_view_mm=(360, 380, 400),
        kvp=120,
        slice_thickness_mm=5.0,
        kernel="STANDARD",
        windows={
            "lung": [(-600, 1500, "LUNG"), (40, 400, "MEDIASTINUM")],
            "liver": [(90, 250, "LIVER"), (40, 400, "ABDOMEN")],
        },
    ),
    Scanner(
        manufacturer="Imaginary Imaging",
        model="Helix 64",
        blur_px=0.55,
        noise_gain=1.2,
        noise_grain_px=0.4,
        bits_stored=16,
        signed=True,
        intercept=0,
        padding=-2000,
        fields_of_view_mm=(350, 375, 400),
        kvp=100,
        slice_thickness_mm=3.0,
        kernel="H40",
        windows={"lung": [(-500, 1400, "")], "liver": [(60, 360, "")]},
    ),
    Scanner(
        manufacturer="Synthetic Tomography",
        model="Volume Pro",
        blur_px=0.8,
        noise_gain=0.8,
        noise_grain_px=0.75,
        bits_stored=16,
        signed=False,
        intercept=-1024,
        padding=None,
        fields_of_view_mm=(370, 400, 420),
        kvp=130,
        slice_thickness_mm=2.5,
        kernel="SOFT-2",
        windows={
            "lung": [(-550, 1600, ""), (35, 350, "")],
            "liver": [(70, 300, ""), (50, 500, "")],
        },
    ),
)
