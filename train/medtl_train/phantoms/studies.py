"""Who is scanned, by whom, and with a lesion or without.

A patient is a seed, a slice of the patient is a level in [-1, 1].
"""

import uuid
from dataclasses import dataclass

import numpy as np

from medtl_runtime.errors import UsageError
from medtl_train.phantoms.organs import ORGANS
from medtl_train.phantoms.scanners import SCANNERS, Scanner

LABELS = ("healthy", "lesion")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One patient's study. Patients come in pairs that share a header, so it tells no label."""

    organ: str
    lesion: bool
    seed: int
    patient: int
    """Its number, from 1."""
    images: int
    size: int

    @property
    def label(self) -> str:
        """Its class, one of `LABELS`."""
        return LABELS[self.lesion]

    @property
    def pair(self) -> int:
        """What a patient shares with one other patient: scanner, field of view, age, sex."""
        return (self.patient - 1) // 2

    @property
    def scanner(self) -> Scanner:
        """The scanner of the pair."""
        return SCANNERS[self.pair % len(SCANNERS)]

    def rng(self, purpose: str) -> np.random.Generator:
        """Start a stream of its own for each purpose, so that a lesion moves no other draw."""
        return stream(self.seed, self.organ, self.patient, purpose)

    def level(self, image: int) -> float:
        """Position of an image, counted from 0, along the patient: in [-1, 1]."""
        return 2 * image / (self.images - 1) - 1 if self.images > 1 else 0.0


def stream(*key: str | int) -> np.random.Generator:
    """Start the random numbers that belong to a key."""
    return np.random.default_rng(uuid.uuid5(uuid.NAMESPACE_OID, repr(key)).int)


def plan_studies(organ: str, *, patients: int, images: int, size: int, seed: int) -> list[Study]:
    """Draw who has a lesion: one of each pair of patients, which the seed chooses.

    Raises
    ------
    UsageError
        An argument is out of range; the message names it.
    """
    if organ not in ORGANS:
        raise UsageError(f"organ is {organ!r}; there are phantoms of {', '.join(ORGANS)}")
    given = {
        "patients": (patients, 2),
        "images": (images, 1),
        "size": (size, 64),  # the finest texture has 32 cycles per image side
        "seed": (seed, 0),
    }
    for name, (value, least) in given.items():
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")
    chosen = [stream(seed, organ, "label", pair).integers(2) for pair in range((patients + 1) // 2)]
    return [
        Study(
            organ=organ,
            lesion=bool(chosen[(patient - 1) // 2] == patient % 2),
            seed=seed,
            patient=patient,
            images=images,
            size=size,
        )
        for patient in range(1, patients + 1)
    ]
