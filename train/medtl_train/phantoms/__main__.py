"""The command ``python -m medtl_train.phantoms``."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from medtl_runtime import commands
from medtl_train.phantoms import LABELS, ORGANS, write_studies

app = commands.new_app()


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="Folder for healthy/ and lesion/.", metavar="OUT")],
    *,
    organ: Annotated[str, typer.Option(help=f"{' or '.join(ORGANS)}.")] = "lung",
    patients: Annotated[int, typer.Option(help="Patients, half of them with a lesion.")] = 120,
    images: Annotated[int, typer.Option(help="Images per patient.")] = 6,
    size: Annotated[int, typer.Option(help="Rows and columns.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    overwrite: commands.OverwriteOption = False,
) -> None:
    """Write phantom CT studies (DICOM) to learn from, one folder per class.

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
        typer.echo(f"{sum(path.parent.name == label for path in paths)} files in {out / label}")


def main() -> NoReturn:
    """Run the command."""
    commands.run(app, "python -m medtl_train.phantoms")


if __name__ == "__main__":
    main()
