"""Sets damaged versions of a model repository aside, so that a start serves the last good one."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from recengine._files import locked, replace_file, sync
from recengine.bundle import read_manifest, verify, versions
from recengine.client.schema import SCHEMA_PARAMETER, Schema, contract
from recengine.compile.repository import contract_of
from recengine.errors import BundleError, ServerError, UnknownFormat
from recengine.graph_files import RECORD as GRAPH_RECORD
from recengine.graph_files import verify_graph
from recengine.plans import RECORD as PLAN_RECORD
from recengine.plans import verify_plan
from recengine.serving.backends import OURS, read_configs


def set_aside_damaged(repository: Path) -> str | None:
    """Renames damaged versions to failed-<version>, where Triton does not look.

    Which those are is not guessed from a failed start, which may be the machine's fault: files are
    held against their manifests, plans and graphs against their records. A version is one
    compile's, of all its models: where one model's is damaged all go, and so does what is newer
    than the newest version that is whole and good. Models that compile did not write are left
    alone, and nothing is deleted: rename a directory back to serve it again.

    The configs stay those of the newest compile, except that those of a split repository name the
    version that is left.

    Returns:
        What was done and why; None where nothing was done: no version is damaged, no good one is
        left, a file cannot be read, a version is of a format that this recengine does not know, or
        a compile or another start is at work.

    Raises:
        ServerError: versions are damaged, but the repository cannot be changed, or the last good
            version takes other requests than the configs say.
    """
    try:
        with locked(repository, wait=False):
            return _set_aside_damaged(repository)
    except (OSError, UnknownFormat):
        return None


def _set_aside_damaged(repository: Path) -> str | None:
    models = _compiled_models(repository)
    good, newer, damaged = _examine(repository, models)
    if good is None or not damaged or "retrieval" not in models:
        return None
    found = "; ".join(f"{_name(path)}: {error}" for path, error in damaged.items())
    _require_same_requests(repository, models["retrieval"], good, found)
    # What is damaged goes last: whatever kills this process, the next start gets here again, and
    # never serves a model's old version with another's new one.
    order = sorted(newer, key=lambda path: path in damaged)
    try:
        for model in models:
            _name_version(repository / model / "config.pbtxt", good)
        moved = [f"{_name(path)} to {_set_aside(path).name}" for path in order]
    except (OSError, text_format.ParseError) as error:
        raise ServerError(
            f"[serve] {repository}: version {good} is the last good one, but newer ones cannot be "
            f"set aside: {error}. Make the repository writable, or rename "
            f"{', '.join(map(_name, order))} yourself. Damaged: {found}"
        ) from None
    return (
        f"[serve] {repository}: going back to version {good}, the last good one. Damaged: {found}. "
        f"Renamed: {', '.join(moved)}"
    )


def _compiled_models(repository: Path) -> dict[str, pb.ModelConfig]:
    """What compile wrote: the models of our backend, our ensembles, and the steps of those."""
    configs = read_configs(repository)
    names = set()
    for name, config in configs.items():
        if SCHEMA_PARAMETER in config.parameters:
            steps = config.ensemble_scheduling.step
            names |= {name, *(step.model_name for step in steps)}
    return {name: config for name, config in configs.items() if name in names}


def _examine(
    repository: Path, models: dict[str, pb.ModelConfig]
) -> tuple[int | None, list[Path], dict[Path, BundleError]]:
    """The newest version that every model has undamaged, what is newer, and what is damaged."""
    numbers = {number for model in models for number in versions(repository / model)}
    newer: list[Path] = []
    damaged: dict[Path, BundleError] = {}
    for number in sorted(numbers, reverse=True):
        paths = {model: repository / model / str(number) for model in models}
        standing = {model: path for model, path in paths.items() if path.is_dir()}
        failed = {}
        for model, path in standing.items():
            try:
                _verify(models[model], path)
            except UnknownFormat:
                raise
            except BundleError as error:
                failed[path] = error
        if not failed and standing == paths:
            return number, newer, damaged
        newer += standing.values()
        damaged |= failed
    return None, newer, damaged


def _verify(config: pb.ModelConfig, version: Path) -> None:
    if config.backend == OURS:
        verify(version)
    elif (version / PLAN_RECORD).exists():
        verify_plan(version)
    elif (version / GRAPH_RECORD).exists():
        verify_graph(version)


def _require_same_requests(
    repository: Path, config: pb.ModelConfig, version: int, found: str
) -> None:
    """The configs, and with them what clients are told, are those of the newest compile."""
    told = Schema.from_json(config.parameters[SCHEMA_PARAMETER].string_value)
    served = contract_of(read_manifest(repository / "retrieval" / str(version)))
    if served != contract(told.features, told.dense_features, told.hashed_items):
        raise ServerError(
            f"[serve] {repository}: version {version} is the last good one, but it takes other "
            "requests than retrieval/config.pbtxt says: compile its bundle again, with "
            f"--change-schema. Damaged: {found}"
        )


def _name_version(path: Path, version: int) -> None:
    """Has a config that names versions name this one."""
    text = path.read_text()
    config = text_format.Parse(text, pb.ModelConfig())
    served = config.version_policy.specific.versions
    steps = [step for step in config.ensemble_scheduling.step if step.model_version > 0]
    if not served and not steps:
        return
    if served:
        served[:] = [version]
    for step in steps:
        step.model_version = version
    header = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
    replace_file(path, ("".join(header) + text_format.MessageToString(config)).encode())


def _set_aside(path: Path) -> Path:
    """Renames to a name that none had: another version of this number may have failed before."""
    # Triton takes every name that begins with digits for a version.
    target, attempt = path.with_name(f"failed-{path.name}"), 1
    while target.exists():
        attempt += 1
        target = path.with_name(f"failed-{path.name}-{attempt}")
    path.rename(target)
    sync(path.parent)
    return target


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
