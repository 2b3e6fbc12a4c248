"""Write the public records of a small federation into a folder: ``python -m tests.kit.make_records FOLDER``."""

import sys
from pathlib import Path

from tests.kit.federation import two_rounds

if __name__ == "__main__":
    print(two_rounds().publish(Path(sys.argv[1])))
