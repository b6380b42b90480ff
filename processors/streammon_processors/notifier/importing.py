"""An Alertmanager configuration as a notifier's file, with everything that was not translated and why.

Routes, inhibitions and time intervals mean the same in both. Receivers become channels; their templates do not
come along, because streammon writes its own messages. **No secret is copied**: it becomes ``{env: NAME}``, or
``{file: PATH}`` where Alertmanager read it from a file, and which to set is told. A receiver of which nothing could be
translated tells the console, so that no alert is lost silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import yaml

from streammon.commands import matcher
from streammon.errors import ConfigError
from streammon_processors.notifier.description import CONSOLE
from streammon_processors.notifier.times import MONTHS, WEEKDAYS, Span
from streammon_processors.rules.prometheus.promql import PromqlError, duration_s
from streammon_processors.rules.prometheus.translation import UntranslatedError, lasting, refuse

Tree: TypeAlias = Any
Fields: TypeAlias = Mapping[str, Any]

_ROUTE: Final = {
    "receiver", "group_by", "group_wait", "group_interval", "repeat_interval", "match", "match_re", "matchers",
    "continue", "routes", "mute_time_intervals", "active_time_intervals",
}  # fmt: skip
_INHIBIT: Final = {
    "source_match", "source_match_re", "source_matchers", "target_match", "target_match_re", "target_matchers", "equal",
}  # fmt: skip
_TOP: Final = {
    "global", "route", "receivers", "inhibit_rules", "time_intervals", "mute_time_intervals", "templates",
}  # fmt: skip
_SUNDAY_FIRST: Final = (WEEKDAYS[-1], *WEEKDAYS[:-1])
_DEFAULT_WAITS: Final = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"}
"""Alertmanager's, which are not ours."""
OUR_LABELS: Final = frozenset(
    {"rule", "severity", "alert_id", "host", "entity", "id", "service", "model", "model_version", "endpoint"}
)
"""Labels that alerts of streammon have."""
_EVENTS_URL: Final = "https://events.pagerduty.com"


@dataclass(frozen=True)
class Imported:
    """A notifier's file, and what there is to say about it."""

    content: dict[str, Any]
    lost: tuple[str, ...]
    """What was not translated, and why."""
    secrets: Mapping[str, str]
    """The environment variables to set, and what belongs there."""

    def as_yaml(self) -> str:
        lines = ["# Imported from Alertmanager by `streammon notify import`."]
        if self.secrets:
            lines += ["#", "# Set these, they are secrets and were not copied:"]
            lines += [f"#   {name}: {what}" for name, what in self.secrets.items()]
        if self.lost:
            lines += ["#", "# Not translated, or not the same:"]
            lines += [f"#   {_printable(each)}" for each in self.lost]
        dumped: str = yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True, width=110)
        return "\n".join(lines) + "\n\n" + dumped


def import_alertmanager(file: Path, labels: Mapping[str, str]) -> Imported:
    """The same whom, when and how often. ``labels``: their names there and here, such as instance and host.

    Raises:
        ConfigError: the file cannot be read, or is no configuration of Alertmanager. It repeats nothing of the file.
    """
    content = _load(file)
    if not isinstance(content, dict) or not isinstance(content.get("route"), dict):
        raise ConfigError(f"{file} is no configuration of Alertmanager: it holds no `route`")
    try:
        return _Import({"alertname": "rule", **labels}).all(content)
    except RecursionError:
        raise ConfigError(f"{file}: its routes are nested too deep") from None


class _Texts(yaml.SafeLoader):
    """Takes what is written as it is, as Alertmanager does: ``17:00`` is no number of minutes, and ``01`` not 1."""


_Texts.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0].endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _load(file: Path) -> Tree:
    """Its errors show where, and nothing of what stands there: it may be a secret."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _Texts)  # noqa: S506  # it is a SafeLoader
    except OSError as error:
        problem = error.strerror or "it cannot be read"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = f"it is not valid YAML, line {mark.line + 1}" if mark else "it is not valid YAML"
    except (yaml.YAMLError, ValueError, RecursionError):
        problem = "it is not valid YAML"
    raise ConfigError(f"cannot read {file}: {problem}")


@dataclass
class _Import:
    """Of one file. ``_labels``: names there and here."""

    _labels: Mapping[str, str]
    _lost: list[str] = field(default_factory=list)
    _secrets: dict[str, str] = field(default_factory=dict)
    _by_value: dict[str, str] = field(default_factory=dict)
    """Secrets and the variables that are to hold them, so that one that is used twice is asked for once."""
    _channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    _receivers: dict[str, list[str]] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    """The labels that matchers ask for."""

    def all(self, content: Fields) -> Imported:
        for name in sorted(set(content) - _TOP):
            self._lost.append(f"`{name}` is not known")
        if content.get("templates"):
            self._lost.append("`templates`: streammon writes its own messages")
        for each in _dicts(content.get("receivers")):
            self._receiver(each, _dict(content.get("global")))
        intervals = self._intervals(
            [*_dicts(content.get("time_intervals")), *_dicts(content.get("mute_time_intervals"))]
        )
        route = {"to": list(self._channels) or [CONSOLE], "group_by": [], **_DEFAULT_WAITS}
        route |= self._route(content["route"], "route", intervals)
        inhibit = list(self._inhibitions(_dicts(content.get("inhibit_rules"))))
        result = {"channels": self._channels, "route": route, "time_intervals": intervals, "inhibit": inhibit}
        if foreign := sorted(self._asked - OUR_LABELS):
            self._lost.append(
                f"matchers ask for {', '.join(foreign)}: alerts have such labels only if their series do; say "
                "what it is here with --label NAME=OURS"
            )
        kept = {name: part for name, part in result.items() if part}
        return Imported(kept, tuple(dict.fromkeys(self._lost)), self._secrets)

    # -- routes

    def _route(self, route: Fields, where: str, intervals: Fields) -> dict[str, Any]:
        for name in sorted(set(route) - _ROUTE):
            self._lost.append(f"{where}: `{name}` is not known")
        found: dict[str, Any] = {}
        if route.get("receiver") is not None:
            found["to"] = self._to(str(route["receiver"]), where)
        if route.get("group_by") is not None:
            found["group_by"] = [self._label(str(each)) for each in _list(route["group_by"])]
        for name in _DEFAULT_WAITS:
            if route.get(name) is not None:
                found[name] = self._wait(str(route[name]), f"{where}.{name}")
        for theirs, ours in (("mute_time_intervals", "mute"), ("active_time_intervals", "active")):
            names = [str(each) for each in _list(route.get(theirs))]
            self._lost += [
                f"{where}: time interval {name!r} could not be used" for name in names if name not in intervals
            ]
            known = [name for name in names if name in intervals]
            if known and (ours == "mute" or len(known) == len(names)):  # too few active times would keep alerts back
                found[ours] = known
        if inner := list(self._inner(_dicts(route.get("routes")), where, intervals)):
            found["routes"] = inner
        return found

    def _inner(self, routes: Iterable[Fields], where: str, intervals: Fields) -> Iterator[dict[str, Any]]:
        for number, route in enumerate(routes):
            place = f"{where}.routes[{number}]"
            try:
                matchers = self._matchers(route, "match", "match_re", "matchers")
            except UntranslatedError as error:
                self._lost.append(f"{place}: {error}; without this route its alerts go on to the next")
                continue
            going_on = {"continue": True} if _is_true(route.get("continue")) else {}
            yield {"matchers": matchers, **going_on, **self._route(route, place, intervals)}

    def _to(self, receiver: str, where: str) -> list[str]:
        if receiver not in self._receivers:
            self._lost.append(f"{where}: there is no receiver {receiver!r}; the console is told")
        return [*self._receivers.get(receiver, [CONSOLE])]  # of its own: YAML would point back at one that is shared

    def _wait(self, text: str, where: str) -> str:
        try:
            found_s = duration_s(text)
        except PromqlError as error:
            raise ConfigError(f"{where}: {error}") from None
        return lasting(found_s) if found_s else "0s" if where.endswith("group_wait") else "1s"

    def _label(self, label: str) -> str:
        return self._labels.get(label) or label

    def _matchers(self, fields: Fields, equal: str, regex: str, texts: str) -> list[str]:
        """Raises UntranslatedError."""
        written = [(str(label), "=", str(value)) for label, value in _dict(fields.get(equal)).items()]
        written += [(str(label), "=~", str(value)) for label, value in _dict(fields.get(regex)).items()]
        given = fields.get(texts)
        for text in [given] if isinstance(given, str) else _list(given):
            written += _matchers_in(str(text))
        return [self._matcher(*each) for each in written]

    def _matcher(self, label: str, operator: str, value: str) -> str:
        name = self._label(label)
        self._asked.add(name)
        text = f"{name}{operator}{msgspec.json.encode(value).decode()}"
        try:
            matcher(text)
        except ValueError as error:
            refuse(str(error))
        return text

    def _inhibitions(self, rules: Iterable[Fields]) -> Iterator[dict[str, Any]]:
        for number, rule in enumerate(rules):
            unknown = sorted(set(rule) - _INHIBIT)
            try:
                if unknown:
                    refuse(f"`{unknown[0]}` is not known")
                source, target = (
                    self._matchers(rule, f"{side}_match", f"{side}_match_re", f"{side}_matchers")
                    for side in ("source", "target")
                )
            except UntranslatedError as error:
                self._lost.append(f"inhibit_rules[{number}]: {error}; what it kept quiet is told")
                continue
            equal = [self._label(str(each)) for each in _list(rule.get("equal"))]
            yield {"source": source, "target": target, **({"equal": equal} if equal else {})}

    # -- times

    def _intervals(self, written: Iterable[Fields]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for each in written:
            name = str(each.get("name", ""))
            try:
                found[name] = [_span(span) for span in _dicts(each.get("time_intervals"))]
            except UntranslatedError as error:
                self._lost.append(f"time interval {name!r}: {error}; routes that name it are as if they did not")
        return found

    # -- receivers

    def _receiver(self, receiver: Fields, above: Fields) -> None:
        name = str(receiver.get("name", ""))
        self._receivers[name] = []
        kinds = {kind: _dicts(configs) for kind, configs in receiver.items() if kind.endswith("_configs")}
        for kind, configs in kinds.items():
            for config in configs:
                self._channel(name, kind, config, above)
        if any(kinds.values()) and not self._receivers[name]:
            self._receivers[name] = [CONSOLE]
            self._lost.append(f"receiver {name!r}: nothing of it could be translated, the console is told instead")

    def _channel(self, receiver: str, kind: str, config: Fields, above: Fields) -> None:
        short = kind.removesuffix("_configs")
        where = f"receiver {receiver!r}: {kind}"
        make = _CHANNELS.get(short)
        if make is None:
            self._lost.append(f"{where}: streammon has no such channel; see whether Apprise has, `type: apprise`")
            return
        channel = self._new_name(receiver, short)
        try:
            used, fields = make(_Receiver(self, channel, config, above))
        except UntranslatedError as error:
            self._lost.append(f"{where}: {error}")
            return
        if left := sorted(set(config) - used - {"send_resolved"}):
            self._lost.append(f"{where}: {', '.join(left)} left out")
        if _is_false(config.get("send_resolved")):
            self._lost.append(f"{where}: send_resolved: false left out; who was told the beginning is told the end")
        self._channels[channel] = fields
        self._receivers[receiver].append(channel)

    def _new_name(self, receiver: str, kind: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9_-]", "-", receiver).lstrip("_-")[:60] or "receiver"
        tried = [
            plain,
            f"{plain}-{kind}",
            *(f"{plain}-{kind}-{number}" for number in range(2, len(self._channels) + 4)),
        ]
        return next(name for name in tried if name not in self._channels and name != CONSOLE)

    def secret(self, value: object, what: str, channel: str, field_: str) -> dict[str, str]:
        """The variable that is to hold it."""
        variable = re.sub(r"[^A-Z0-9]", "_", f"NOTIFY_{channel}_{field_}".upper())
        name = self._by_value.setdefault(str(value), variable)
        self._secrets.setdefault(name, what)
        return {"env": name}


@dataclass
class _Receiver:
    """One of the configs of a receiver, and the global ones behind it."""

    of: _Import
    channel: str
    config: Fields
    above: Fields

    def secret(self, field_: str, ours: str, above: str = "") -> dict[str, str] | None:
        """Where a secret is, of a config or of ``global``."""
        for fields, name in ((self.config, field_), (self.above, above)):
            if name and fields.get(f"{name}_file"):
                return {"file": str(fields[f"{name}_file"])}
            if name and fields.get(name):
                return self.of.secret(fields[name], f"the {name} of {self._whose(fields)}", self.channel, ours)
        return None

    def _whose(self, fields: Fields) -> str:
        return "`global`" if fields is self.above else f"what is now channel {self.channel!r}"

    def get(self, name: str, above: str = "") -> Any:
        return self.config.get(name, self.above.get(above) if above else None)


Made: TypeAlias = tuple[set[str], dict[str, Any]]
"""Which fields were used, and the channel."""


def _slack(receiver: _Receiver) -> Made:
    if token := receiver.secret("app_token", "token", "slack_app_token"):
        if not receiver.get("channel"):
            refuse("a token needs a `channel`")
        return {"app_token", "app_token_file", "channel"}, {
            "type": "slack",
            "token": token,
            "channel": receiver.get("channel"),
        }
    url = receiver.secret("api_url", "webhook_url", "slack_api_url") or refuse("it has no `api_url`")
    return {"api_url", "api_url_file"}, {"type": "slack", "webhook_url": url}


def _pagerduty(receiver: _Receiver) -> Made:
    key = receiver.secret("routing_key", "routing_key")
    if key is None:
        refuse("`service_key` is of the old Events API: make an Events API v2 integration, `routing_key`")
    url = str(receiver.get("url", "pagerduty_url") or "").removesuffix("/").removesuffix("/v2/enqueue")
    other = {"url": _plain(url)} if url and url != _EVENTS_URL else {}
    return {"routing_key", "routing_key_file", "url"}, {"type": "pagerduty", "routing_key": key, **other}


def _email(receiver: _Receiver) -> Made:
    host, _, port = str(receiver.get("smarthost", "smtp_smarthost") or "").rpartition(":")
    sender, to = receiver.get("from", "smtp_from"), receiver.get("to")
    if not host or not port.isdecimal() or not sender or not to:
        refuse("it needs `smarthost` as HOST:PORT, `from` and `to`")
    tls, user = receiver.get("require_tls", "smtp_require_tls"), receiver.get("auth_username", "smtp_auth_username")
    password = receiver.secret("auth_password", "password", "smtp_auth_password") if user else None
    security = "tls" if port == "465" else "starttls" if not _is_false(tls) or password else "none"
    if _is_false(tls) and password and security == "starttls":
        receiver.of._lost.append(
            f"channel {receiver.channel!r}: require_tls: false left out; a password goes encrypted"
        )
    login = {"username": str(user), "password": password} if user and password else {}
    fields = {
        "type": "email", "host": host.strip("[]"), "port": int(port), "security": security, **login,
        "from": _plain(str(sender)), "to": [_plain(each.strip()) for each in str(to).split(",")],
    }  # fmt: skip
    return {
        "smarthost", "from", "to", "require_tls", "auth_username", "auth_password", "auth_password_file",
    }, fields  # fmt: skip


def _webhook(receiver: _Receiver) -> Made:
    url = receiver.secret("url", "url") or refuse("it has no `url`")
    fields: dict[str, Any] = {"type": "webhook", "url": url}
    http = _dict(receiver.config.get("http_config"))
    used = {"url", "url_file"}
    if set(http) == {"authorization"} and str(_dict(http["authorization"]).get("type", "Bearer")) == "Bearer":
        inner = _Receiver(receiver.of, receiver.channel, _dict(http["authorization"]), {})
        if token := inner.secret("credentials", "token"):
            fields["token"] = token
            used.add("http_config")
    receiver.of._lost.append(f"channel {receiver.channel!r}: the body is streammon's, not Alertmanager's; see `body`")
    return used, fields


def _opsgenie(receiver: _Receiver) -> Made:
    key = receiver.secret("api_key", "api_key", "opsgenie_api_key") or refuse("it has no `api_key`")
    fields: dict[str, Any] = {"type": "opsgenie", "api_key": key}
    used = {"api_key", "api_key_file", "api_url"}
    if url := str(receiver.get("api_url", "opsgenie_api_url") or "").rstrip("/"):
        fields["url"] = _plain(url)
    responders = _dicts(receiver.config.get("responders"))
    if responders and all(each.get("type") in ("team", "teams") and each.get("name") for each in responders):
        fields["teams"] = [_plain(str(each["name"])) for each in responders]
        used.add("responders")
    if re.fullmatch(r"P[1-5]", priority := str(receiver.config.get("priority", ""))):
        fields["priorities"] = dict.fromkeys(("critical", "warning", "info"), priority)
        used.add("priority")
    return used, fields


_CHANNELS: Final[Mapping[str, Callable[[_Receiver], Made]]] = {
    "slack": _slack,
    "pagerduty": _pagerduty,
    "email": _email,
    "webhook": _webhook,
    "opsgenie": _opsgenie,
}


def _plain(text: str) -> str:
    if "{{" in text:
        refuse("a template stands where a fixed text is needed")
    return text


# ---------------------------------------------------------------- matchers

_MATCHER: Final = re.compile(
    r'\s*(?:"((?:[^"\\]|\\.)*)"|([A-Za-z_:][\w:.]*))\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",{}]*))\s*(?:,|$)'
)
_ESCAPES: Final = {"n": "\n", '"': '"', "\\": "\\"}


def _matchers_in(text: str) -> Iterator[tuple[str, str, str]]:
    """Of ``severity="critical"`` or ``{a="b", c=~"d"}``. Raises UntranslatedError."""
    inner = text.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    at = 0
    while at < len(inner):
        found = _MATCHER.match(inner, at)
        if not found:
            refuse(f"{text!r} is no matcher that is understood")
        quoted, label, operator, value, bare = found.groups()
        yield _unescaped(quoted) if label is None else label, operator, bare if value is None else _unescaped(value)
        at = found.end()


def _unescaped(text: str) -> str:
    def plain(found: re.Match[str]) -> str:
        return _ESCAPES[found[1]] if found[1] in _ESCAPES else refuse(f"the escape {found[0]!r} is not understood")

    return re.sub(r"\\(.)", plain, text)


# ---------------------------------------------------------------- times


def _span(written: Fields) -> dict[str, Any]:
    """Raises UntranslatedError."""
    known = {"times", "weekdays", "days_of_month", "months", "years", "location"}
    if unknown := sorted(set(written) - known):
        refuse(f"`{unknown[0]}` is not known")
    span: dict[str, Any] = {
        "times": [f"{each.get('start_time')}-{each.get('end_time')}" for each in _dicts(written.get("times"))],
        "weekdays": [day for each in _list(written.get("weekdays")) for day in _weekdays(str(each))],
        "days_of_month": [_days(str(each)) for each in _list(written.get("days_of_month"))],
        "months": [_months(str(each)) for each in _list(written.get("months"))],
        "years": [str(each) for each in _list(written.get("years"))],
    }
    span = {name: value for name, value in span.items() if value}
    if written.get("location"):
        span["location"] = str(written["location"])
    if span.get("location") == "Local":
        refuse("`location: Local` is whatever clock a machine has; name it")
    try:
        msgspec.convert(span, Span, strict=False)
    except msgspec.ValidationError as error:
        refuse(str(error).partition(" - at ")[0])
    return span


def _weekdays(text: str) -> Sequence[str]:
    """Each by its name: Alertmanager's week begins on Sunday."""
    first, _, last = text.lower().replace(" ", "").partition(":")
    if first not in WEEKDAYS or (last or first) not in WEEKDAYS:
        refuse(f"weekday {text!r} is not known")
    start, end = _SUNDAY_FIRST.index(first), _SUNDAY_FIRST.index(last or first)
    return _SUNDAY_FIRST[start : end + 1] or refuse(f"weekdays {text!r} run backwards")


def _days(text: str) -> str:
    """``5:-1`` is what ``5:31`` is; other ranges from the start to before the end of a month are none of ours."""
    first, _, last = text.replace(" ", "").partition(":")
    if last == "-1" and not first.startswith("-"):
        return f"{first}:31"
    return f"{first}:{last}" if last else first


def _months(text: str) -> str:
    parts = text.lower().replace(" ", "").split(":")
    return ":".join(str(MONTHS.index(each) + 1) if each in MONTHS else each for each in parts)


# ---------------------------------------------------------------- what YAML holds


def _dict(value: object) -> Fields:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _dicts(value: object) -> list[Fields]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _is_true(value: object) -> bool:
    return str(value).lower() in ("true", "yes", "on", "y")


def _is_false(value: object) -> bool:
    return str(value).lower() in ("false", "no", "off", "n")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
