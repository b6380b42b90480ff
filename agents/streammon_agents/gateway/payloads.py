"""What is inside the bodies of model servers: rows of features, and what was predicted for them.

===============  ==========================================  =================================================
KServe v1        ``{"instances": [row, …]}``                 ``{"predictions": [row, …]}``
v2 (Open          ``{"inputs": [tensor, …]}``                 ``{"model_name": …, "outputs": [tensor, …]}``
Inference)
Seldon           ``{"data": {"names": …, "ndarray": …}}``     the same
OpenAI           ``{"messages": …}``, ``{"prompt": …}``      ``{"choices": …, "usage": …}``: tokens, no content
===============  ==========================================  =================================================

A row is a number, a string, an object, or a list whose names, where nobody gives any, are ``x0``, ``x1``, …. Of a
tensor the first dimension counts the rows; one with several columns gives ``NAME.0``, ``NAME.1``, …. What is no scalar
(an image, a nested list) is left out, as are texts longer than `MAX_TEXT`: they are content, and no feature.

Sources: KServe, "V1 protocol" and "Open Inference Protocol (V2)"; Seldon Core 1, ``prediction.proto``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import isclose, isfinite, prod
from typing import Any, NamedTuple

import msgspec

from streammon.errors import Reason, Rejected

MAX_INSTANCES = 1000
"""Instances of one request that become events; of further ones only the number is known, and counted."""
MAX_TEXT = 64
MAX_OUTPUTS = 32
"""Numbers that one prediction of several outputs keeps."""
MAX_CLASSES = 10_000
"""Columns that are read of a response: to know that they are probabilities, all of them are needed."""
_PREDICTION = ("prediction", "predict", "label", "class")
"""Names of the output that is the prediction, where there are several."""

Scalar = float | str | bool
Row = dict[str, Scalar]


class Payload(NamedTuple):
    """A body that was understood. ``named``: the sender gave the names of the columns."""

    rows: list[Row]
    instances: int = 0
    """How many there were; ``rows`` has `MAX_INSTANCES` at most."""
    named: bool = False
    model: str | None = None
    model_version: str | None = None
    error: str | None = None
    puid: str | None = None
    """Seldon's id of the prediction."""
    tokens: dict[str, float] | None = None
    """Fields of the event that count tokens."""


class Prediction(NamedTuple):
    """What one row of outputs says."""

    prediction: Scalar | None = None
    confidence: float | None = None
    metrics: dict[str, float] | None = None


def payload_of(data: bytes, most_columns: int) -> Payload:
    """Read a request or a response. Raises Rejected for what is none."""
    try:
        return payload(msgspec.json.decode(data), most_columns)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(Reason.INVALID_JSON, f"the payload cannot be read: {error}") from None
    except RecursionError:
        raise Rejected(Reason.INVALID_JSON, "the payload is nested too deeply") from None


def payload(body: Any, most_columns: int) -> Payload:
    """The same for a body that is decoded already."""
    if not isinstance(body, dict):
        raise Rejected(Reason.INVALID_EVENT, f"the payload is {_kind(body)}, expected an object")
    for known, read in _READERS:
        if known in body and (found := read(body, most_columns)) is not None:
            return found
    if body.get("error") or _failed(body):
        return Payload([], error=_error(body))
    raise Rejected(
        Reason.INVALID_EVENT,
        f"the payload has none of {', '.join(known for known, _ in _READERS)}: it is of no protocol known here",
    )


def _v1(body: Mapping[str, Any], most: int) -> Payload | None:
    rows = body.get("instances", body.get("predictions"))
    if not isinstance(rows, list):
        return None
    return Payload(_rows(rows, (), most), len(rows), model=_text(body.get("model_name")))


def _v2(body: Mapping[str, Any], most: int) -> Payload | None:
    tensors = body.get("inputs", body.get("outputs"))
    if not isinstance(tensors, list) or not all(isinstance(one, dict) and "data" in one for one in tensors):
        return None
    rows, instances = _columns(tensors, most)
    return Payload(
        rows,
        instances,
        named=len(tensors) > 1,
        model=_text(body.get("model_name")),
        model_version=_text(body.get("model_version")),
    )


def _seldon(body: Mapping[str, Any], most: int) -> Payload | None:
    data, meta = body.get("data"), body.get("meta")
    puid = _text(meta.get("puid")) if isinstance(meta, dict) else None
    if _failed(body):
        return Payload([], error=_error(body), puid=puid)
    if not isinstance(data, dict):
        return None
    names = [str(name) for name in data.get("names") or ()] if isinstance(data.get("names"), list) else []
    if isinstance(rows := data.get("ndarray"), list):
        return Payload(_rows(rows, names, most), len(rows), bool(names), puid=puid)
    if isinstance(tensor := data.get("tensor"), dict):
        shape, values = tensor.get("shape"), tensor.get("values")
        grid = _grid({"name": "x", "shape": shape, "data": values})
        return Payload(_rows(grid[:MAX_INSTANCES], names, most), len(grid), bool(names), puid=puid)
    return None


def _text_data(body: Mapping[str, Any], most: int) -> Payload | None:
    """Seldon's ``strData`` and ``jsonData``: one instance."""
    value = body.get("strData", body.get("jsonData"))
    return Payload(_rows([value], (), most), 1, isinstance(value, dict))


def _language(body: Mapping[str, Any], most: int) -> Payload | None:
    """OpenAI's chat and completions: what was used, never what was said."""
    usage, tokens = body.get("usage"), dict[str, float]()
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details")
        counts = {
            "input_tokens": usage.get("prompt_tokens"),
            "output_tokens": usage.get("completion_tokens"),
            "cache_read_tokens": details.get("cached_tokens") if isinstance(details, dict) else None,
        }
        tokens = {name: float(count) for name, count in counts.items() if type(count) is int and 0 <= count < 2**53}
    return Payload([], 1, model=_text(body.get("model")), tokens=tokens)


_READERS: Sequence[tuple[str, Callable[[Mapping[str, Any], int], Payload | None]]] = (
    ("instances", _v1),
    ("predictions", _v1),
    ("inputs", _v2),
    ("outputs", _v2),
    ("data", _seldon),
    ("strData", _text_data),
    ("jsonData", _text_data),
    ("choices", _language),
    ("messages", _language),
    ("prompt", _language),
)


def _failed(body: Mapping[str, Any]) -> bool:
    status = body.get("status")
    return isinstance(status, dict) and status.get("status") in ("FAILURE", 1)


def _error(body: Mapping[str, Any]) -> str:
    status = body.get("status")
    said = body.get("error") or (status.get("reason") or status.get("info") if isinstance(status, dict) else None)
    return str(said or "failed")[:MAX_TEXT]


# --- rows -----------------------------------------------------------------------------------------------------


def _rows(rows: Sequence[Any], names: Sequence[str], most: int) -> list[Row]:
    return [_row(row, names, most) for row in rows[:MAX_INSTANCES]]


def _row(row: Any, names: Sequence[str], most: int) -> Row:
    if isinstance(row, dict):
        pairs: Iterator[tuple[str, Any]] = iter(row.items())
    else:
        values = row if isinstance(row, list) else [row]
        pairs = ((names[at] if at < len(names) else f"x{at}", value) for at, value in enumerate(values))
    found = ((name, scalar) for name, value in pairs if (scalar := _scalar(value)) is not None)
    return dict(islice(found, most))


def _columns(tensors: Sequence[dict[str, Any]], most: int) -> tuple[list[Row], int]:
    grids = [(str(tensor.get("name", "x")), _grid(tensor)) for tensor in tensors]
    instances = max((len(grid) for _, grid in grids), default=0)
    rows: list[Row] = [{} for _ in range(min(instances, MAX_INSTANCES))]
    for name, grid in grids:
        if len(grid) != instances:
            continue  # a parameter of the request, not a column of its instances
        for row, values in zip(rows, grid, strict=False):
            for at, value in enumerate(values):
                if len(row) >= most:
                    break
                if (scalar := _scalar(value)) is not None:
                    row[name if len(values) == 1 else f"{name}.{at}"] = scalar
    return rows, instances


def _grid(tensor: Mapping[str, Any]) -> list[list[Any]]:
    """The rows of a tensor, each with its other dimensions laid flat."""
    name, shape, data = tensor.get("name"), tensor.get("shape"), tensor.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Rejected(Reason.INVALID_EVENT, f"the shape of tensor {name!r} is {str(shape)[:MAX_TEXT]}, expected sizes")
    flat = list(_flat(data))
    if len(flat) != prod(shape):
        raise Rejected(Reason.UNEQUAL_LENGTHS, f"tensor {name!r} has {len(flat)} values, its shape says {shape}")
    count = shape[0] if shape else 1
    width = len(flat) // count if count else 0
    return [flat[at : at + width] for at in range(0, len(flat), width)] if width else []


def _flat(data: Any) -> Iterator[Any]:
    if isinstance(data, list):
        for each in data:
            yield from _flat(each)
    else:
        yield data


def _scalar(value: Any) -> Scalar | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if isfinite(number) else None
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else None


def _text(value: Any) -> str | None:
    return value[:MAX_TEXT] or None if isinstance(value, str) else None


def _kind(value: Any) -> str:
    return type(value).__name__


# --- predictions ----------------------------------------------------------------------------------------------


def prediction_of(row: Row, named: bool) -> Prediction:
    """What a row of outputs says: one value is the prediction; several that are not negative and add to 1 are
    probabilities, and the likeliest class is; of any others, the one with a name of `_PREDICTION`, if there is one.
    """
    if len(row) <= 1:
        return Prediction(next(iter(row.values()), None))
    numbers = {name: value for name, value in row.items() if type(value) is float}
    for name in _PREDICTION:
        if name in row:
            others = {other: value for other, value in numbers.items() if other != name}
            return Prediction(row[name], _confidence(others), _bounded(others))
    if len(numbers) == len(row) and _are_probabilities(numbers):
        best = max(numbers, key=numbers.__getitem__)
        return Prediction(best if named else float(list(numbers).index(best)), numbers[best])
    return Prediction(metrics=_bounded(numbers))


def _confidence(numbers: Mapping[str, float]) -> float | None:
    return max(numbers.values()) if len(numbers) > 1 and _are_probabilities(numbers) else None


def _are_probabilities(numbers: Mapping[str, float]) -> bool:
    return min(numbers.values()) >= 0 and isclose(sum(numbers.values()), 1.0, abs_tol=1e-3)


def _bounded(numbers: Mapping[str, float]) -> dict[str, float] | None:
    return dict(islice(numbers.items(), MAX_OUTPUTS)) or None
