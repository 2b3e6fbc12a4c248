"""Run one target under atheris: ``python -m tests.fuzz.run TARGET [libFuzzer's arguments] [corpus folders]``."""

import sys

import atheris

with atheris.instrument_imports(include=["commonweal_protocols", "commonweal_adapters"]):
    from tests.fuzz.targets import accepts

if __name__ == "__main__":
    program, target, *arguments = sys.argv

    def one_input(data: bytes) -> None:
        accepts(target, data)

    atheris.Setup([program, *arguments], one_input)
    atheris.Fuzz()
