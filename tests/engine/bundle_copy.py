"""A copy of a bundle that a test may change."""

import json

from safetensors.numpy import load_file, save_file

from recengine.bundle import hash_file
from recengine.ops import EmbeddingTable


class Copy:
    """The files of one bundle; its manifest as plain JSON."""

    def __init__(self, directory):
        self.directory = directory

    def manifest(self):
        return json.loads((self.directory / "manifest.json").read_text())

    def write_manifest(self, manifest):
        (self.directory / "manifest.json").write_text(json.dumps(manifest))

    def rehash(self, name):
        """Makes the manifest agree with a changed file, so that a reader looks into it."""
        manifest = self.manifest()
        manifest["files"][name] = hash_file(self.directory / name).model_dump()
        self.write_manifest(manifest)

    def store_table(self, name, row_type):
        """Stores the float32 rows of a table as another type."""
        manifest = self.manifest()
        table = manifest["tables"][name]
        path = self.directory / table["data"]["file"]
        tensors = load_file(path)
        rows = EmbeddingTable.from_array(tensors[table["data"]["tensor"]], row_type)
        tensors[table["data"]["tensor"]] = rows.data
        save_file(tensors, path)
        table["row_type"] = row_type
        self.write_manifest(manifest)
        self.rehash(path.name)
