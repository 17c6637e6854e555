"""Axial slices of a chest and an abdomen, painted organ by organ from the couch inwards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl_train.phantoms.drawing import Array, Canvas, Range, Tubes, Vary
from medtl_train.phantoms.organs import ORGANS
from medtl_train.phantoms.studies import Study


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A healthy slice before it is scanned."""

    hu: Array
    """[size, size], in HU."""
    organ: NDArray[np.bool_]
    """[size, size], where a lesion may lie."""
    parenchyma_hu: float


def draw_anatomy(study: Study, level: float, size: int) -> Anatomy:
    """Draw a patient's anatomy at a level in [-1, 1]; the label plays no part in it."""
    organ, vary, canvas = ORGANS[study.organ], Vary(study.rng("anatomy"), level), Canvas(size)
    parenchyma_hu, blood = vary(*organ.parenchyma_hu), vary(*organ.blood_hu)
    parenchyma = parenchyma_hu + organ.texture_hu * vary.field(size, organ.texture_cycles)
    draw = {"lung": _chest, "liver": _abdomen}[study.organ]
    outline = draw(canvas, vary, parenchyma, blood)
    soft_tissue = canvas.hu > -300
    hu = canvas.hu + soft_tissue * (6 * vary.field(size, (4, 30)))
    return Anatomy(hu=hu, organ=outline < 0, parenchyma_hu=parenchyma_hu)


def _chest(canvas: Canvas, vary: Vary, parenchyma: Array, blood: float) -> Array:
    """Paint an axial chest; return the lungs' outline."""
    width, height, fat = vary(0.405, 0.46), vary(0.29, 0.345), vary(0.014, 0.04)
    centre, _ = _trunk(canvas, vary, (width, height), fat)
    axes = width - fat - 0.05, height - fat - 0.038
    cavity = canvas.outline(centre - 0.006j, axes, [*vary.wobble(0.03, range(2, 4)), -0.03])
    spine = centre + complex(vary(-0.006, 0.006), height - fat - 0.135)
    canvas.fill(cavity, -85)
    mediastinum = _mediastinum(canvas, vary, centre, spine, blood + vary(0, 140))
    sternum = centre - (axes[1] + 0.012) * 1j
    canvas.fill(canvas.outline(sternum, (0.045, 0.012)), 260)
    _bones(canvas, vary, spine, centre, (axes[0] + 0.016, axes[1] + 0.014))

    lungs = np.maximum(cavity, -mediastinum) + 0.008
    dependent = 90 * (canvas.y - np.float32(centre.imag))  # denser at a supine patient's back
    canvas.fill(lungs, parenchyma + dependent, edge=0.01)
    vessels = _lung_vessels(vary, centre)
    canvas.blend(canvas.tubes(vessels) * canvas.cover(lungs, 0.01), blood)
    for side in (-1, 1):
        bronchus, radius = complex(side * vary(0.075, 0.09), vary(0.03, 0.055)), vary(0.01, 0.015)
        canvas.disc(centre + bronchus, radius + 0.006, 20)
        canvas.disc(centre + bronchus, radius, -950)
    return lungs


def _lung_vessels(vary: Vary, centre: complex) -> Tubes:
    """Draw a tree from each hilum, and what crosses the slice."""
    vessels = [_cross_sections(vary, 150, (0.0015, 0.011))]
    for side in (-1, 1):
        hilum = centre + complex(side * vary(0.085, 0.11), vary(-0.01, 0.04))
        headings = np.array([-1.2, -0.6, 0.0, 0.55, 1.15]) + vary(-0.2, 0.2)
        headings = headings if side > 0 else np.pi - headings
        vessels.append(_vessel_tree(vary, hilum, headings, vary(0.008, 0.012), vary(0.02, 0.025)))
    return _join(vessels)


def _mediastinum(
    canvas: Canvas, vary: Vary, centre: complex, spine: complex, blood: float
) -> Array:
    """Paint heart, aorta and oesophagus; return the outline of all that the lungs leave free."""
    column = canvas.outline(centre + 0.01, (vary(0.05, 0.07), 0.32), vary.wobble(0.15))
    heart_at = centre + vary.point((0.03, 0.065), (-0.09, -0.05))
    heart_axes = vary(0.08, 0.135), vary(0.08, 0.105)
    heart = canvas.outline(heart_at, heart_axes, vary.wobble(0.1), vary(0.2, 0.7))
    canvas.fill(heart, 45, edge=0.01)
    for x, y in ((-0.4, -0.25), (0.45, 0.1), (-0.1, 0.5)):
        chamber = heart_at + complex(x * heart_axes[0], y * heart_axes[1])
        axes = vary(0.35, 0.5) * heart_axes[0], vary(0.3, 0.45) * heart_axes[1]
        outline = canvas.outline(chamber, axes, vary.wobble(0.15), vary(-0.5, 0.8))
        canvas.fill(outline, blood, edge=0.015)
    radius = vary(0.022, 0.03)
    aorta = canvas.outline(spine + vary.point((0.035, 0.05), (-0.06, -0.045)), (radius, radius))
    canvas.fill(aorta, blood)
    canvas.disc(spine + vary.point((-0.03, 0.005), (-0.075, -0.06)), 0.013, 40)
    beside_spine = canvas.outline(spine + 0.02j, (0.075, 0.07))
    return np.minimum(np.minimum(column, heart), np.minimum(aorta, beside_spine))


def _abdomen(canvas: Canvas, vary: Vary, parenchyma: Array, blood: float) -> Array:
    """Paint an axial abdomen; return the liver's outline."""
    width, height, fat = vary(0.4, 0.46), vary(0.285, 0.34), vary(0.016, 0.05)
    centre, trunk = _trunk(canvas, vary, (width, height), fat)
    cavity = trunk + fat + vary(0.022, 0.03)
    spine = centre + complex(vary(-0.006, 0.006), height - fat - 0.135)
    canvas.fill(cavity, vary(-108, -92))
    for side in (-1, 1):
        psoas = canvas.outline(spine + side * 0.075 + 0.005j, (0.026, 0.034), vary.wobble(0.1))
        back = canvas.outline(spine + side * 0.07 + 0.09j, (0.06, 0.038), vary.wobble(0.1))
        canvas.fill(np.minimum(psoas, back), 58, edge=0.012)
    _upper_left_organs(canvas, vary, centre, spine, cavity)

    liver = _liver(canvas, vary, centre, spine, cavity)
    canvas.fill(liver, parenchyma, edge=0.008)
    porta = centre + vary.point((-0.1, -0.06), (-0.03, 0.03))
    headings = np.array([2.2, 2.9, 3.7, 4.4, 5.2]) + vary(-0.2, 0.2)
    tree = _vessel_tree(vary, porta, headings, vary(0.01, 0.014), vary(0.022, 0.028))
    vessels = canvas.tubes(_join([tree, _cross_sections(vary, 70, (0.003, 0.0125))]))
    canvas.blend(vessels * canvas.cover(liver + 0.008, 0.01), blood)

    aorta = spine + vary.point((0.02, 0.035), (-0.075, -0.065))
    canvas.disc(aorta, vary(0.022, 0.029), blood + vary(5, 40))
    vena_cava = spine + vary.point((-0.06, -0.045), (-0.075, -0.06))
    canvas.fill(canvas.outline(vena_cava, (vary(0.024, 0.03), 0.02)), blood - 5)
    _bones(canvas, vary, spine, centre, (width - fat - 0.014, height - fat - 0.014))
    return liver


def _liver(canvas: Canvas, vary: Vary, centre: complex, spine: complex, cavity: Array) -> Array:
    """Return the outline of two lobes, merged where they meet, that leave the spine free."""
    right_axes = vary(0.18, 0.21), vary(0.2, 0.23)
    left_axes = vary(0.12, 0.17), vary(0.06, 0.09)
    right_at = centre + vary.point((-0.19, -0.165), (-0.015, 0.02))
    left_at = centre + vary.point((-0.03, 0.02), (-0.13, -0.1))
    right = canvas.outline(right_at, right_axes, vary.wobble(0.1))
    left = canvas.outline(left_at, left_axes, vary.wobble(0.15), vary(-0.15, 0.25))
    lobes = np.minimum(right, left) - 5 * np.maximum(0.05 - np.abs(right - left), 0) ** 2
    hollow = canvas.outline(spine - 0.005j, (0.1, 0.095), vary.wobble(0.08))
    return np.maximum(np.maximum(lobes, cavity + 0.008), -hollow)


def _upper_left_organs(
    canvas: Canvas, vary: Vary, centre: complex, spine: complex, cavity: Array
) -> None:
    """Paint spleen, kidney, bowel, and the stomach with a pocket of gas above its content."""
    gut = [((0.05, 0.3), (-0.1, 0.06), 0.032, vary(-900, 30)) for _ in range(4)]
    for x, y, radius, gas_hu in [*gut, ((0.13, 0.18), (-0.13, -0.09), 0.1, -960)]:
        centre_at, axes = centre + vary.point(x, y), (radius * vary(0.85, 1.15), 0.83 * radius)
        wall = canvas.outline(centre_at, axes, vary.wobble(0.15), vary(-0.4, 0.4))
        wall = np.maximum(wall, cavity + 0.01)
        surface = np.float32(centre_at.imag + vary(-0.6, 0.1) * axes[1])
        canvas.fill(wall, 65)
        canvas.fill(wall + 0.012, vary(0, 35))
        canvas.fill(np.maximum(wall + 0.012, canvas.y - surface), gas_hu)
    spleen_at = centre + vary.point((0.24, 0.27), (0.05, 0.09))
    spleen_axes = 0.075, vary(0.09, 0.13)
    spleen = canvas.outline(spleen_at, spleen_axes, vary.wobble(0.12), vary(-0.5, 0.1))
    texture = 3 * vary.field(canvas.size, (3, 16))
    canvas.fill(np.maximum(spleen, cavity + 0.008), vary(105, 130) + texture, edge=0.01)
    kidney_at = spine + vary.point((0.13, 0.155), (-0.035, 0))
    kidney_axes = vary(0.036, 0.046), vary(0.046, 0.056)
    kidney = canvas.outline(kidney_at, kidney_axes, vary.wobble(0.12))
    for inset, hu in ((-0.02, -100), (0, vary(150, 185)), (0.016, 110)):
        canvas.fill(kidney + inset, hu, edge=0.015)
    canvas.disc(kidney_at - 0.02, 0.014, -60)


def _trunk(canvas: Canvas, vary: Vary, axes: Range, fat: float) -> tuple[complex, Array]:
    """Paint couch, skin, fat and muscle; return the trunk's centre and outline."""
    centre = vary.point((-0.012, 0.012), (-0.025, 0.005))
    squareness = -0.022  # of order 4, which `wobble` leaves out here
    trunk = canvas.outline(centre, axes, [*vary.wobble(0.02, range(2, 4)), squareness])
    couch = canvas.outline(0.2j, (0.62, axes[1] + centre.imag - 0.17))
    shell = np.maximum(np.abs(couch) - 0.006, np.maximum(0.2 - canvas.y, np.abs(canvas.x) - 0.36))
    canvas.fill(shell, -350)
    canvas.fill(trunk, 10)
    canvas.fill(trunk + 0.007, vary(-112, -92))
    canvas.fill(trunk + fat, vary(45, 65), edge=0.012)
    return centre, trunk


def _bones(canvas: Canvas, vary: Vary, spine: complex, centre: complex, ring: Range) -> None:
    """Paint ribs along a ring and a vertebra: bright cortex, softer marrow, dark canal."""
    cortex, marrow = vary(420, 620), vary(150, 260)
    slots = np.radians([-52, -27, -3, 20, 43, 63])
    angle = np.concatenate([slots, np.pi - slots]) + 0.05 * vary.level
    angle = angle + vary.rng.uniform(-0.12, 0.12, 12)
    along = -ring[0] * np.sin(angle) + 1j * ring[1] * np.cos(angle)
    half = along / np.abs(along) * vary.rng.uniform(0.012, 0.036, 12) * np.exp(1j * vary(-0.1, 0.1))
    middle = centre + ring[0] * np.cos(angle) + 1j * ring[1] * np.sin(angle)
    girth = np.full(12, vary(0.0085, 0.011))
    canvas.blend(canvas.tubes((middle - half, middle + half, girth)), cortex)
    canvas.blend(canvas.tubes((middle - half, middle + half, girth - 0.0055)), marrow)

    pedicle, lamina, transverse = 0.03 + 0.03j, 0.027 + 0.066j, 0.078 + 0.062j
    start = np.array([pedicle, lamina, lamina, 0.088j])
    end = np.array([lamina, 0.088j, transverse, vary(0.11, 0.13) * 1j])
    start, end = np.append(start, -start.conj()), np.append(end, -end.conj())  # both sides
    canvas.blend(canvas.tubes((spine + start, spine + end, np.full(8, 0.0095))), cortex - 120)
    axes = vary(0.045, 0.052), vary(0.036, 0.041)
    vertebra = canvas.outline(spine, axes, vary.wobble(0.05))
    canvas.fill(vertebra, cortex)
    canvas.fill(vertebra + 0.008, marrow + 25 * vary.field(canvas.size, (8, 30)), edge=0.01)
    canvas.fill(canvas.outline(spine + 0.051j, (0.021, 0.017)), 25)


def _vessel_tree(vary: Vary, root: complex, headings: Array, radius: float, step: float) -> Tubes:
    """Curved vessels that fork three times, thin out, and leave and re-enter the slice."""
    rng, level = vary.rng, vary.level
    tip = np.full(len(headings), root)
    heading = headings + 0.12 * level * rng.standard_normal(len(headings))
    width = radius * rng.uniform(0.7, 1.0, len(headings))
    pieces = []
    for share in (1.0, 0.75, 0.5, 0.4):
        seen = (rng.random(len(tip)) + 0.25 * level) % 1 < share
        for _ in range(3):
            heading = heading + 0.16 * rng.standard_normal(len(tip))
            end = tip + step * rng.uniform(0.6, 1.2, len(tip)) * np.exp(1j * heading)
            pieces.append((tip[seen], end[seen], width[seen]))
            tip, width = end, 0.95 * width
        spread = rng.uniform(0.25, 0.7, len(tip)) + 0.1 * level * rng.standard_normal(len(tip))
        heading = np.concatenate([heading - spread, heading + 0.8 * spread])
        tip = np.tile(tip, 2)
        width = np.concatenate([0.85 * width, 0.62 * width])
    return _join(pieces)


def _cross_sections(vary: Vary, count: int, radius: Range) -> Tubes:
    """Vessels through the slice, anywhere: discs and short tubes, thinner than any lesion."""
    rng = vary.rng
    place, heading, turn, width, run = rng.random((5, count))
    start = place - 0.5 + 1j * (rng.random(count) - 0.5)
    start = start + 0.012 * vary.level * np.exp(2j * np.pi * turn)
    end = start + 0.015 * run**2 * np.exp(2j * np.pi * heading)
    return start, end, radius[0] + (radius[1] - radius[0]) * width**2


def _join(parts: Sequence[Tubes]) -> Tubes:
    starts, ends, radii = zip(*parts, strict=True)
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(radii)
