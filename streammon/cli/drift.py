"""``streammon drift``: what models are held against."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from streammon.broker import Broker, connect
from streammon.broker.reading import read
from streammon.cli.base import Output, OutputOption, app, command, print_json, print_rows
from streammon.cli.data import clock_time, moment
from streammon.cli.roles import ModelFile, with_models
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.models import DriftPolicy, load_models
from streammon.profiles import REFERENCES, Reference, TargetReference

if TYPE_CHECKING:
    from streammon_processors.profiles.sample import Sample

drift_app = typer.Typer(help="Drift of models: what they are held against.", no_args_is_help=True)
app.add_typer(drift_app, name="drift")


@command(drift_app, "reference")
async def drift_reference(
    settings: Settings,
    service: Annotated[str, typer.Option(help="The service of the model.", show_default=False)],
    model: Annotated[str, typer.Option(help="The model.", show_default=False)],
    model_version: Annotated[
        str | None, typer.Option(help="Its version; all that have none of their own, if not given.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--from", help="CSV or Parquet file with the values.", show_default=False)
    ] = None,
    from_time: Annotated[
        str | None, typer.Option(help="Predictions in the log since this time, or age.", show_default=False)
    ] = None,
    to_time: Annotated[str, typer.Option(help="With --from-time: until when.")] = "0s",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FEATURE=COLUMN", help="The column of a feature of another name.", show_default=False),
    ] = None,
    prediction: Annotated[str | None, typer.Option(help="The column with predictions.", show_default=False)] = None,
    confidence: Annotated[str | None, typer.Option(help="The column with confidences.", show_default=False)] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A column to leave out; may be repeated.", show_default=False)
    ] = None,
    models: ModelFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the reference, publish nothing.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Publish how the inputs and outputs of a model should be distributed, from a file or from the log.

    Each column of a file is a feature of its name. The reference holds from the first window that starts later; none
    is ever changed, a newer one takes its place.
    """
    from streammon_processors.profiles.reading import ColumnNames, sample_of_file

    if (file is None) == (from_time is None):
        raise ConfigError("say where the reference comes from: --from FILE, or --from-time TIME")
    policy = load_models(with_models(settings, models).models.file).policy(service, model).drift
    broker = None if dry_run and file is not None else await connect(settings)
    try:
        if file is not None:
            features = {value: name for name, value in _pairs(column or ())}
            names = ColumnNames(features, prediction, confidence, frozenset(ignore or ()))
            sample, origin = sample_of_file(file, names, policy), f"file {file.name}"
        else:
            assert broker is not None, "the log is there"
            sample, origin = await _of_log(
                broker, settings, (service, model, model_version), from_time, to_time, policy
            )
        made = sample.reference(service, model, model_version, origin=origin, made_unix_s=time.time())
        if broker is not None and not dry_run:
            await _publish(broker, made)
    finally:
        if broker is not None:
            await broker.close()
    _print_reference(made, output)


def _pairs(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--column is {text!r}, expected FEATURE=COLUMN")
        yield name, value


async def _of_log(
    broker: Broker,
    settings: Settings,
    model: tuple[str, str, str | None],
    from_: str | None,
    to: str,
    policy: DriftPolicy,
) -> tuple[Sample, str]:
    from streammon_processors.profiles.reading import sample_of_log
    from streammon_processors.replay import Range

    range_ = Range(moment("--from-time", from_ or ""), moment("--to-time", to))
    if range_.from_unix_s >= range_.to_unix_s:
        raise ConfigError(f"--from-time {from_} is not before --to-time {to}")
    sample = await sample_of_log(broker, model, range_, policy, settings.windows)
    between = f"{_utc(range_.from_unix_s)} to {_utc(range_.to_unix_s)}"
    if not sample.count:
        raise ConfigError(f"the log holds no predictions of {model[0]}/{model[1]} from {between}")
    return sample, f"log {between}"


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def _publish(broker: Broker, reference: Reference) -> None:
    from streammon.reference_ticks import in_ticks

    await broker.append(in_ticks(reference))


# --- what there is ------------------------------------------------------------------------------------------------


@command(drift_app, "references")
async def drift_references(
    settings: Settings,
    service: Annotated[str | None, typer.Option(help="Only of this service.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.", show_default=False)] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the references there are, the newest last. `streammon process profiles` takes them over."""
    found = [
        each for each in await _references(settings) if service in (None, each.service) and model in (None, each.model)
    ]
    if output is Output.JSON:
        for each in found:
            print_json(_summary(each))
    else:
        print_rows(map(_row, found), _COLUMNS, output, empty="no references here")


@command(drift_app, "show")
async def drift_show(
    settings: Settings,
    id_: Annotated[str, typer.Argument(metavar="ID", help="Of a reference, or how it begins.", show_default=False)],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a reference: what it says of each target."""
    found = [each for each in await _references(settings) if each.id.startswith(id_)]
    if len({each.id for each in found}) != 1:
        said = f"{len(found)} begin so" if found else "`streammon drift references` lists those there are"
        raise ConfigError(f"there is no reference {id_!r}: {said}")
    _print_reference(found[-1], output)


async def _references(settings: Settings) -> list[Reference]:
    """All, by when they took over."""
    broker = await connect(settings)
    found: dict[bytes, Reference] = {}
    decode = msgspec.json.Decoder(Reference).decode
    try:
        if REFERENCES in await broker.topics():
            async with aclosing(read(broker, [REFERENCES])) as batches:
                async for _, records in batches:
                    found |= {each.key: decode(each.value) for each in records if each.key and each.value}
    finally:
        await broker.close()
    return sorted(found.values(), key=lambda each: (each.service, each.model, each.since_unix_s, each.id))


_COLUMNS = ("id", "service", "model", "version", "since", "events", "targets", "origin")
_TARGET_COLUMNS = ("target", "kind", "count", "missing", "min", "mean", "max", "distinct", "bins")


def _summary(reference: Reference) -> dict[str, Any]:
    """All but what it says of each target."""
    whole: dict[str, Any] = msgspec.to_builtins(reference)
    return {name: value for name, value in whole.items() if name != "pairs"} | {"targets": list(reference.targets)}


def _row(reference: Reference) -> dict[str, Any]:
    return {
        "id": reference.id,
        "service": reference.service,
        "model": reference.model,
        "version": reference.model_version or "",
        "since": clock_time(reference.since_unix_s) if reference.since_unix_s else "the first event",
        "events": reference.sample_size,
        "targets": len(reference.targets),
        "origin": reference.origin,
    }


def _print_reference(reference: Reference, output: Output) -> None:
    if output is Output.JSON:
        print_json(reference)
        return
    version = f" {reference.model_version}" if reference.model_version else ""
    print(f"reference {reference.id} of {reference.service}/{reference.model}{version}, {reference.origin}: ", end="")
    print(f"{reference.sample_size} events")
    rows = [{"target": name, **_target_row(target)} for name, target in reference.targets.items()]
    print_rows(rows, _TARGET_COLUMNS, output, empty="no targets: there are no values")


def _target_row(target: TargetReference) -> dict[str, Any]:
    numbers = {name: value for name in ("min", "mean", "max") if (value := getattr(target, name)) is not None}
    return {
        "kind": target.kind,
        "count": target.count,
        "missing": target.missing,
        **{name: f"{value:.6g}" for name, value in numbers.items()},
        "distinct": target.distinct,
        "bins": _bins(target),
    }


def _bins(target: TargetReference) -> str:
    if target.edges:
        return str(len(target.edges) - 1)
    return _shortened([f"{value!r}: {count}" for value, count in (target.values or {}).items()])


def _shortened(texts: Sequence[str], most: int = 4) -> str:
    more = f", and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
