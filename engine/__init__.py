"""The storage engine: layers that know no process. `db.py` is the front, `fs/` the floor."""
