"""Makes the package that the supervisor runs importable in a worker, as `meles`.

Runs in: workers. The directory above this one is put on a worker's module path, so a worker runs
the supervisor's own files, however those were found: an installation, an editable one, or a
checkout of any name. It also keeps the public API, which a worker does not need, from being
imported.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[4])]
