# mypy: ignore-errors
# ruff: noqa: D102
"""Wire tensors of many requests to pooled user vectors, and answers back. Part of both models."""

import json
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from safetensors.numpy import load_file


class Bundle:
    """The manifest of a bundle and its tensors."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.manifest = json.loads((self.directory / "manifest.json").read_text())
        self._files = {}

    def tensor(self, place):
        if place["file"] not in self._files:
            self._files[place["file"]] = load_file(self.directory / place["file"])
        return self._files[place["file"]][place["tensor"]]

    def table(self, name):
        table = self.manifest["tables"][name]
        rows = self.tensor(table["data"])
        if table["row_type"] == "int8":
            return rows.astype(np.float32) * self.tensor(table["scales"])[:, None]
        return rows.astype(np.float32)

    def graph(self, name):
        return str(self.directory / self.manifest["graphs"][name]["file"])


class Vocabulary:
    """Raw ids to table rows; row 0 stands for an unknown id."""

    def __init__(self, bundle, name):
        vocabulary = bundle.manifest["vocabularies"][name]
        self.first, self.count = vocabulary.get("first", 0), vocabulary["count"]
        self.keys = None
        if vocabulary["kind"] == "hashed":
            keys, rows = bundle.tensor(vocabulary["keys"]), bundle.tensor(vocabulary["rows"])
            keys, rows = keys[rows > 0], rows[rows > 0]
            order = np.argsort(keys)
            self.keys, self.rows = keys[order], rows[order].astype(np.int64)

    def lookup(self, ids):
        if self.keys is None:
            rows = ids - self.first
            return np.where((rows >= 0) & (rows < self.count), rows + 1, 0)
        places = np.minimum(np.searchsorted(self.keys, ids), len(self.keys) - 1)
        return np.where(self.keys[places] == ids, self.rows[places], 0)


class UserFeatures:
    """Pools the bags of one stage for a batch of users whose rows have different widths."""

    def __init__(self, bundle, bags):
        names = [feature["name"] for feature in bundle.manifest["features"]]
        used = {bag["feature"] for bag in bags}
        self.vocabularies = {
            place: Vocabulary(bundle, bundle.manifest["features"][place]["vocabulary"])
            for place, name in enumerate(names)
            if name in used
        }
        self.bags = [
            (
                names.index(bag["feature"]),
                bag["max_length"],
                bundle.table(bag["table"]),
                bag["pooling"],
            )
            for bag in bags
        ]
        self.width = sum(table.shape[1] for _, _, table, _ in self.bags)

    def pool(self, flat, starts, lengths):
        """Flat ids; starts, lengths [batch, features + 1] -> sparse [batch, width], known."""
        batch = len(lengths)
        sparse = np.empty((batch, self.width), np.float32)
        known = np.zeros(batch, bool)
        rows, offsets = {}, {}
        for place, vocabulary in self.vocabularies.items():
            ids = take(flat, starts[:, place], lengths[:, place])
            rows[place] = vocabulary.lookup(ids)
            offsets[place] = np.cumsum(lengths[:, place]) - lengths[:, place]
            known |= any_per_user(rows[place] > 0, offsets[place], lengths[:, place])
        column = 0
        for place, max_length, table, pooling in self.bags:
            kept, bag_offsets = rows[place], offsets[place]
            if (lengths[:, place] > max_length).any():
                kept, bag_offsets = keep_last(kept, bag_offsets, lengths[:, place], max_length)
            part = sparse[:, column : column + table.shape[1]]
            pool_bags(
                table, kept, bag_offsets, np.diff(bag_offsets, append=len(kept)), pooling, part
            )
            column += table.shape[1]
        return sparse, known


def pool_bags(table, rows, offsets, lengths, pooling, out):
    """NumPy for one user or one id each, else torch: the faster of the two, measured."""
    if (lengths == 1).all():
        out[:] = table.take(rows, 0)
    elif len(lengths) == 1:
        total = table.take(rows, 0).sum(0)
        out[:] = total / max(len(rows), 1) if pooling == "mean" else total
    else:
        out[:] = torch.nn.functional.embedding_bag(
            torch.from_numpy(rows), torch.from_numpy(table), torch.from_numpy(offsets), mode=pooling
        ).numpy()


def tensors(requests, name):
    return [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]


def responses(ids, **outputs):
    """One for each request's ids, with its users' rows of every output."""
    found, user = [], 0
    for request_ids in ids:
        part = slice(user, user + len(request_ids))
        user = part.stop
        rows = [pb_utils.Tensor(name, array[part]) for name, array in outputs.items()]
        found.append(pb_utils.InferenceResponse(rows))
    return found


def unpack(ids, lengths):
    """Ids [users, width], lengths [users, features + 1] per request -> flat, starts, lengths."""
    counts = (
        np.concatenate(lengths).astype(np.int64)
        if len(lengths) > 1
        else lengths[0].astype(np.int64)
    )
    totals = counts.sum(axis=1)
    parts, user = [], 0
    for rows in ids:
        for row in rows:
            parts.append(row[: totals[user]])
            user += 1
    flat = np.concatenate(parts) if len(parts) > 1 else parts[0]
    ends = np.cumsum(counts).reshape(counts.shape)
    return flat, ends - counts, counts


def take(flat, starts, lengths):
    """The ids of one feature of all users, back to back."""
    if len(starts) == 1:
        return flat[starts[0] : starts[0] + lengths[0]]
    if (lengths == 1).all():
        return flat[starts]
    shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return flat[np.arange(len(shift)) + shift]


def keep_last(rows, offsets, lengths, max_length):
    kept = np.minimum(lengths, max_length)
    return take(rows, offsets + lengths - kept, kept), np.cumsum(kept) - kept


def any_per_user(flags, offsets, lengths):
    if len(lengths) == 1:
        return flags.any()
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(owners, weights=flags, minlength=len(lengths)) > 0
