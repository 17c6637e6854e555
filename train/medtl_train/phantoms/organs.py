"""How chest and abdomen look in CT, and how hard their lesions are to find."""

from dataclasses import dataclass

from medtl_train.phantoms.drawing import Range


@dataclass(frozen=True, kw_only=True)
class Organ:
    """What is drawn inside one organ, and so how hard its lesions are to find."""

    body_part: str
    """Defined term for BodyPartExamined (PS3.16 annex L)."""
    window: tuple[float, float]
    """Centre and width in HU, to look at the organ with."""
    parenchyma_hu: Range
    texture_hu: float
    """Standard deviation of the parenchyma's own structure."""
    texture_cycles: Range
    """Its band, in cycles per image side."""
    noise_hu: Range
    """Standard deviation of the noise, before the scanner's gain."""
    blood_hu: Range
    """A vessel that fills its pixels."""
    lesion_hu: Range
    """Contrast of a lesion over its parenchyma."""
    lesion_radius: Range = (0.038, 0.08)
    second_lesion: float = 0.2
    """Share of lesion patients with two lesions."""


ORGANS = {
    "lung": Organ(
        body_part="CHEST",
        window=(-600, 1500),
        parenchyma_hu=(-880, -820),
        texture_hu=22,
        texture_cycles=(5, 22),
        noise_hu=(50, 80),
        blood_hu=(20, 60),
        lesion_hu=(500, 800),
    ),
    "liver": Organ(
        body_part="ABDOMEN",
        window=(90, 250),
        parenchyma_hu=(88, 115),
        texture_hu=4,
        texture_cycles=(3, 16),
        noise_hu=(6, 8),
        blood_hu=(140, 185),
        lesion_hu=(60, 100),
    ),
}
