"""A copy of a bundle that a test may change."""

import json

from recengine.bundle import hash_file


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
