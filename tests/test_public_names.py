"""What a release promises: a name that appears or goes is a change for the changelog."""

import inspect

import pytest

import recengine
import recengine.client
import recengine.client.aio
import recengine.data
import recengine.errors
import recengine.ops
from recengine.client import RecommenderClient
from recengine.client.aio import RecommenderClient as AsyncRecommenderClient

ERRORS = {
    "AccessDenied",
    "BundleError",
    "CompileError",
    "DeadlineExceeded",
    "DeviceError",
    "InputError",
    "Overloaded",
    "RecengineError",
    "ServerError",
    "ServerUnavailable",
    "UnknownFormat",
}
CLIENT = {
    "Feature",
    "Recommendations",
    "RecommenderClient",
    "Schema",
    "User",
    "WireUsers",
    "pack_users",
}
METHODS = {"close", "rank", "ready", "recommend", "retrieve", "schema"}


def test_errors():
    names = {name for name, value in vars(recengine.errors).items() if inspect.isclass(value)}
    assert names == ERRORS
    assert all(
        issubclass(getattr(recengine.errors, name), recengine.errors.RecengineError)
        for name in names
    )


def test_package():
    assert set(recengine.__all__) == {"DeviceEngine", "Engine", "__version__"}
    assert inspect.isclass(recengine.DeviceEngine)
    assert inspect.isclass(recengine.Engine)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recengine.nothing  # noqa: B018


def test_client():
    assert set(recengine.client.__all__) == CLIENT
    assert all(hasattr(recengine.client, name) for name in CLIENT)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recengine.client.nothing  # noqa: B018


def public(client):
    return {name for name in dir(client) if not name.startswith("_")}


def test_both_clients_have_the_same_methods_and_arguments():
    assert public(RecommenderClient) == public(AsyncRecommenderClient) == METHODS
    for name in METHODS - {"schema"} | {"__init__"}:
        blocking, twin = getattr(RecommenderClient, name), getattr(AsyncRecommenderClient, name)
        assert inspect.signature(blocking) == inspect.signature(twin), name
        assert inspect.iscoroutinefunction(twin) is (name != "__init__")


def test_ops():
    assert set(recengine.ops.__all__) == {
        "CacheStats",
        "DeviceArray",
        "DeviceItemIndex",
        "DeviceTable",
        "DeviceVocabulary",
        "EmbeddingTable",
        "ItemIndex",
        "LiveItemIndex",
        "Pooling",
        "RowType",
        "TopKCertificate",
        "Vocabulary",
        "build_slots",
        "certified_topk",
        "cosine_topk",
        "cuda_built",
        "cuda_devices",
        "default_isa",
        "embedding_bag",
        "fuse_rows",
        "order",
        "quantize_rows",
        "supported_isas",
        "to_device",
        "usable_cores",
    }


def test_data():
    assert set(recengine.data.__all__) == {
        "Columns",
        "Dataset",
        "FeatureTable",
        "Interactions",
        "Ragged",
        "Split",
        "detect_format",
        "leave_last_out",
        "read",
        "splitter",
        "time_ratio",
    }
