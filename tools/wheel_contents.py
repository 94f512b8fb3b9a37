"""wheel_contents.py WHEEL: the wheel holds the packages whole, and nothing but them."""

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = {"gateway", "featureclient", "headrace", "loadtest"}
REPOSITORY = Path(__file__).resolve().parent.parent


def main(wheel: str) -> int:
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *sorted(PACKAGES)]
    wanted = set(subprocess.run(listing, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\n"))
    wanted.discard("")
    for name in sorted(wanted - packed):
        print(f"{name} is not in the wheel", file=sys.stderr)
    for name in sorted(packed - wanted):
        print(f"{name} is in the wheel and not in the repository's packages", file=sys.stderr)
    licensed = any(name.endswith("/licenses/LICENSE") for name in names)
    if not licensed:
        print("the wheel has no LICENSE", file=sys.stderr)
    print(f"{len(packed)} files of {', '.join(sorted(PACKAGES))}, {Path(wheel).stat().st_size / 1024:.0f} KiB")
    return 0 if wanted == packed and licensed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
