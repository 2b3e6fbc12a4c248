"""The committed reference is what the code makes."""

from deploy.reference import FOLDER, reference


def test_the_committed_reference_is_fresh() -> None:
    fresh = reference()
    generated = [*FOLDER.glob("schemas/*.json"), *(FOLDER / p for p in fresh)]
    committed = {str(p.relative_to(FOLDER)): p.read_text("utf-8") for p in generated}
    assert committed == fresh, "run: python -m deploy.reference"
