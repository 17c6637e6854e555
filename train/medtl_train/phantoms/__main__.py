"""The command ``python -m medtl_train.phantoms``."""

from pathlib import Path
from typing import NoReturn

import click

from medtl_runtime import commands
from medtl_train.phantoms import LABELS, ORGANS, write_studies


@click.command(context_settings=commands.SETTINGS)
@click.argument("out", type=commands.PATH, metavar="OUT")
@click.option("--organ", default="lung", help=f"{' or '.join(ORGANS)}.")
@click.option("--patients", type=int, default=120, help="Patients, half of them with a lesion.")
@click.option("--images", type=int, default=6, help="Images per patient.")
@click.option("--size", type=int, default=128, help="Rows and columns.")
@click.option("--seed", type=int, default=0, help="Another seed, other patients.")
@commands.overwrite_option
def phantoms(
    out: Path,
    organ: str,
    patients: int,
    images: int,
    size: int,
    seed: int,
    overwrite: bool,
) -> None:
    """Write phantom CT studies (DICOM) to learn from: OUT/healthy and OUT/lesion.

    --overwrite replaces the phantoms in OUT and touches nothing else there.

    \b
    Examples:
      python -m medtl_train.phantoms demo/lung --organ lung
      python -m medtl_train.phantoms demo/liver --organ liver --patients 60 --seed 1
      python -m medtl_train.phantoms demo/lung --size 256 --overwrite
    """
    paths = write_studies(
        out,
        organ=organ,
        patients=patients,
        images=images,
        size=size,
        seed=seed,
        overwrite=overwrite,
    )
    for label in LABELS:
        click.echo(f"{sum(path.parent.name == label for path in paths)} files in {out / label}")


def main() -> NoReturn:
    """Run the command."""
    commands.run(phantoms, "python -m medtl_train.phantoms")


if __name__ == "__main__":
    main()
