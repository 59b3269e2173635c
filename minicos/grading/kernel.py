"""The kernel in which nbgrader runs a submission: where the system can hold it to that, it writes to own folders only.

So a submission leaves gradebook, results and other submissions alone. Jupyter starts this file as a script.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

PLACES = ("TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR")  # variables that say where programs write for themselves


def put_in_place(folder: Path) -> None:
    """Make it what Jupyter finds under the name python3 from here on, with temporary files in `folder`."""
    places = {name: folder / name for name in PLACES}
    for place in places.values():
        place.mkdir()
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    content = {
        "argv": [sys.executable, str(Path(__file__).resolve()), "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
        "env": {name: str(place) for name, place in places.items()},
    }
    (spec / "kernel.json").write_text(json.dumps(content))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("JUPYTER_PATH"))))


def main() -> None:
    import landlock  # this file's neighbour, without the package: no other thread may have begun

    del sys.path[0]
    own = [os.environ[name] for name in PLACES]
    landlock.write_below([*own, os.getcwd(), "/dev/null", "/dev/shm"])
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    main()
