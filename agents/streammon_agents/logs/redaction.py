"""Redaction: secrets and personal data are taken out of events before anything leaves the node.

What is found is replaced by ``[redacted:CLASS]``, in every string of an event, names of fields included; the whole
value goes where the name of the field says that it is one (``password``, ``api_key``, ``authorization``, …).

How it works: one look at an event (an RE2 set of all *triggers*, 1–3 µs) says which detectors may find something; most
lines have none. Only those run, in time that is linear in the text, and what can be verified is: cards by issuer and
Luhn's sum, IBANs by country and checksum, ``Basic`` by decoding, addresses by parsing.

What it cannot do: it knows shapes, not meanings. A password in free prose ("try hunter2") goes through, and so do names
of people. A word after ``token:`` in a sentence is kept if it is letters only; a random-looking value without a known
shape is only found beside a telling name.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec
import re2

from streammon.config import RedactionSettings
from streammon.errors import ConfigError
from streammon.secret_files import read_secret
from streammon_agents.source import Finding

MAX_DEPTH: Final = 12
"""Deeper structures are replaced: nobody has looked into them."""

Verify = Callable[[str], bool]
Replace = Callable[[str, str], str]
"""Of a class and the value that was found: what stands in its place."""


class Detector(NamedTuple):
    """``pattern`` finds; what is taken out is its group ``v``, or all of it. ``trigger`` matches where it may find."""

    name: str
    trigger: str
    pattern: str
    verify: Verify | None = None


# --- secrets ------------------------------------------------------------------------------------------------

_PHRASE: Final = (
    r"(?:passwords?|passwd|pass_?phrase|passwort|kennwort|contrase(?:ñ|n)a|mot[_ -]?de[_ -]?passe|senha|wachtwoord"
    r"|lösenord|hasło|пароль|密码|密碼|パスワード|비밀번호)"
    r"(?:[_.-]?(?:confirm(?:ation)?|again|repeat|hash|new|old|plain|raw|text|value)|_?\d{1,2})?"
)
"""In the languages that people name things in."""
_TELLING: Final = (
    rf"{_PHRASE}|[_.-]pass|secrets?|token|api[ _.-]?keys?|access[ _.-]?keys?|account[_.-]?key"
    r"|private[ _.-]?key|signing[_.-]?key|encryption[_.-]?key|secret[ _.-]?key|shared[_.-]?access[_.-]?key"
    r"|auth[_.-]?key|secret[_.-]?access[_.-]?key|authorization|credentials?|session[_.-]?id|sessionid|jsessionid|phpsessid"
    r"|csrf|connection[_.-]?string"
)
"""How the names of secrets end. ``tokens``, ``max_tokens`` and ``token_count`` are numbers of LLMs."""
_NAME: Final = rf"[\w.-]*?(?:{_TELLING})"
_ENCODED: Final = r"%(?:25)*3[aAdD]"
"""``=`` and ``:`` in a URL within a URL."""
_IS: Final = rf"\\*[\"']?(?:\]|%5D)?[\s\\nrt]*(?:[:=]|{_ENCODED})"
"""Behind a name, in a text as it is or inside of JSON: triggers are looked for in both."""
_SAID: Final = r"\\*[\"']?(?:\]|%5D)?\s*"
"""Behind a name, what ends it; JSON within JSON within JSON has ever more backslashes."""
_QUOTED: Final = (
    r"""\"(?:[^\"\\]|\\.)*|'(?:[^'\\]|\\.)*"""
    r"""|\\"(?:[^"\\]|\\[^"\\]|\\\\(?:\\.|[^\\]))*"""
    r"""|\\+"(?:[^"\\]|\\+[^"\\])*|\\+'(?:[^'\\]|\\+[^'\\])*"""
)
"""As it is, within JSON in a text, and within JSON within JSON."""
_VALUE: Final = rf"""{_QUOTED}|\[[^\]]*\]?|\{{[^}}]*\}}?|[^\s,;&"'}})]+"""
"""Quoted, a list, an object, or what goes on without a blank."""

_KEYS: Final = "|".join([
    r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",  # AWS
    r"\bAIza[\w-]{35}",  # Google
    r"\bya29\.[\w-]{20,}",
    r"\bGOCSPX-[\w-]{20,}",
    r"\b[\w~.-]{3}\dQ~[\w~.-]{31,34}",  # Azure
    r"\bgh[pousr]_[A-Za-z0-9]{30,}",  # GitHub
    r"\bgithub_pat_\w{22,}",
    r"\bglpat-[\w-]{20,}",  # GitLab
    r"\bxox[a-z](?:\.xox[a-z])?-[\w-]{10,}",  # Slack
    r"\bxapp-[\w-]{10,}",
    r"hooks\.slack\.com/(?:services|workflows)/[\w/]{20,}",
    r"\b[srp]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"\bwhsec_[A-Za-z0-9+/=]{16,}",
    r"\bsk-(?:[a-z]{2,8}-)?[\w-]{20,}",  # OpenAI, Anthropic and those that copy them
    r"\bhf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"\bnpm_[A-Za-z0-9]{36}\b",
    r"\bpypi-AgE[\w-]{50,}",
    r"\bSG\.[\w-]{16,32}\.[\w-]{32,64}",  # SendGrid
    r"\bdop_v1_[a-f0-9]{64}\b",  # DigitalOcean
    r"\bdapi[a-f0-9]{32}\b",  # Databricks
    r"\bhvs\.[\w-]{24,}",  # Vault
])  # fmt: skip
_KEY_TRIGGER: Final = (
    r"AKIA|ASIA|ABIA|ACCA|AIza|ya29\.|GOCSPX-|\dQ~|gh[pousr]_|github_pat_|glpat-|xox[a-z]|xapp-|hooks\.slack"
    r"|[srp]k_(?:live|test)|whsec_|sk-|hf_|npm_|pypi-|SG\.|dop_v1|dapi[a-f0-9]|hvs\."
)


def _is_basic(value: str) -> bool:
    """What is no base64 of ``user:password`` is a word after "basic"."""
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


def _is_no_word(value: str) -> bool:
    return len(value) >= 24 or not value.rstrip(".!?)`").isalpha()


def _is_mailbox(value: str) -> bool:
    """``getty@tty1.service`` is a unit of systemd."""
    return value.rpartition(".")[2] not in _UNITS


_UNITS: Final = frozenset({"service", "socket", "timer", "slice", "mount", "target", "scope", "device", "swap", "path"})


_HARMLESS: Final = frozenset({"", "true", "false", "null", "none", "nil", "undefined", "***", "****", "*****", "<nil>"})


def _is_kept_value(value: str) -> bool:
    bare = value.strip("\\\"'")
    return bare.lower() in _HARMLESS or bare.startswith("[redacted:") or _EMPTY.fullmatch(bare) is not None


_EMPTY: Final = re2.compile(r"[\[{(][\s\[\]{}()]*")
_NUMBER: Final = re2.compile(r"\d{1,5}|\d+\.\d+(?:e-?\d+)?(?:ms|s|%)?|<[^<>]*>")
"""What a token of a language model costs or takes, or is called (``<pad>``): no key looks like that."""


def _is_value(value: str) -> bool:
    """Of ``name=value`` and ``"name": "value"``."""
    return not _is_kept_value(value)


def _is_value_of_key(value: str) -> bool:
    return not _is_kept_value(value) and _NUMBER.fullmatch(value.strip("\\\"'")) is None


def _is_loose_value(value: str) -> bool:
    """Of ``name: value``, which may be prose: "invalid token: expected a bracket"."""
    return _is_value_of_key(value) and (value[0] in "\\\"'" or _is_no_word(value))


def _is_no_directory(value: str) -> bool:
    """``PWD=/srv`` is where a command runs."""
    return _is_value(value) and not value.lstrip("\\\"'").startswith("/")


def _is_key(value: str) -> bool:
    """``sk-learn-forest`` is no key: those have digits in their long part."""
    return not value.startswith("sk-") or any(
        len(part) >= 16 and not part.isalpha() for part in re.split("[-_]", value)
    )


SECRETS: Final = (
    Detector(
        "private_key",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY",
        r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)",
    ),
    Detector("jwt", r"eyJ", r"\beyJ[\w-]{8,}(?:\.[\w-]*){2,4}"),
    Detector(
        "cookie",
        rf"(?i)cookies?{_IS}",
        rf"(?i)\b(?:set-)?cookies?{_SAID}[:=]\s*(?P<v>{_QUOTED}|[^\r\n\"'=]+=[^\r\n\"']+)",
        _is_value,
    ),
    Detector("authorization", r"(?i)basic[\s\\]", r"(?i)\bbasic\s+(?P<v>[A-Za-z0-9+/_-]{6,}={0,2})", _is_basic),
    Detector(
        "authorization",
        r"(?i)(?:bearer|digest|negotiate|apikey|api-key)[\s\\]",
        r"(?i)\b(?:bearer|digest|negotiate|apikey|api-key)\s+(?P<v>[A-Za-z0-9+/._~=-]{6,})",
        _is_no_word,
    ),
    Detector("api_key", _KEY_TRIGGER, _KEYS, _is_key),
    Detector("password", r"://[^\s/@]*:[^\s]*@", r"://[^\s/:@]*:(?P<v>[^\s/?#]*)@", _is_value),
    Detector(
        "password",
        rf"(?i){_PHRASE}{_IS}",
        rf"(?i){_PHRASE}{_SAID}[:=]+>?\s*(?P<v>{_VALUE})",
        _is_value,
    ),
    Detector("password", rf"(?i)pwd{_IS}", rf"(?i)pwd{_SAID}[:=]+>?\s*(?P<v>{_VALUE})", _is_no_directory),
    Detector(
        "secret",
        rf"(?i)(?:{_TELLING})(?:%5D)?{_ENCODED}",
        rf"(?i)(?:{_TELLING})(?:%5D)?{_ENCODED}(?P<v>(?:[^\s,;&\"'%]|%[013-9a-f]|%2[0-57-9a-f])+)",
        _is_value,
    ),
    Detector(
        "secret",
        rf"(?i)--[\w.-]*(?:{_TELLING})[\s\\]",
        rf"(?i)(?:^|\s)--{_NAME}\s+(?P<v>{_VALUE})",
        _is_loose_value,
    ),
    Detector(
        "secret",
        rf"(?i)(?:{_TELLING})(?:[\s\\][^<>]*)?>",
        rf"(?i)<{_NAME}(?:\s[^<>]*)?>(?P<v>[^<]+)<",
        _is_value,
    ),
    Detector(
        "secret",
        rf"(?i)(?:{_TELLING})\\*[\"'][\s\\nrt]*[,}}]",
        rf"(?i)\b(?:name|key)\\*[\"']?\s*[:=]\s*\\*[\"']?{_NAME}\\*[\"']?,\s*\\*[\"']?value{_SAID}[:=]\s*(?P<v>{_VALUE})",
        _is_value,
    ),
    Detector(
        "secret",
        rf"(?i)(?:{_TELLING}){_IS}",
        rf"(?i)(?:{_TELLING}){_SAID}=+>?\s*(?P<v>{_VALUE})",
        _is_value_of_key,
    ),
    Detector(
        "secret",
        rf"(?i)(?:{_TELLING}){_IS}",
        rf"(?i)(?:{_TELLING}){_SAID}:\s*(?:(?:basic|bearer|digest|negotiate|token|aws4-hmac-sha256)\s+)?(?P<v>{_VALUE})",
        _is_loose_value,
    ),
    Detector("secret", r"(?i)[?&;](?:sig|signature|x-amz-signature|x-goog-signature|code)=",
             r"(?i)[?&;](?:sig|signature|x-amz-signature|x-goog-signature|code)=(?P<v>[\w%+/=.-]{12,})"),
)  # fmt: skip


# --- personal data ------------------------------------------------------------------------------------------


def is_card(text: str) -> bool:
    """Digits of a card: by the ranges of issuers, their lengths, and Luhn's sum."""
    digits = "".join(filter(str.isdigit, text.replace("%20", "")))
    return _is_issued(digits) and luhn(digits)


def _is_issued(digits: str) -> bool:
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    return (
        (digits[0] == "4" and size in (13, 16, 19))  # Visa
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and size == 16)  # Mastercard
        or (two in (34, 37) and size == 15)  # American Express
        or ((four == 6011 or two == 65 or 644 <= three <= 649) and 16 <= size <= 19)  # Discover
        or (3528 <= four <= 3589 and 16 <= size <= 19)  # JCB
        or ((300 <= three <= 305 or two in (36, 38, 39)) and size == 14)  # Diners
        or (two == 62 and 16 <= size <= 19)  # UnionPay
        or (four in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763) and 13 <= size <= 19)  # Maestro
    )


def luhn(digits: str) -> bool:
    """The checksum of card numbers.

    >>> luhn("79927398713"), luhn("79927398710")
    (True, False)
    """
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(each - 9 if each > 9 else each for each in doubled)) % 10 == 0


_IBAN_LENGTHS: Final = dict[str, int]()
for _length, _countries in {
    15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
    26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU",
    31: "MT SC", 32: "LC",
}.items():  # fmt: skip
    _IBAN_LENGTHS.update(dict.fromkeys(_countries.split(), _length))


def is_iban(text: str) -> bool:
    """By the length of the country and the checksum (mod 97).

    >>> is_iban("GB82 WEST 1234 5698 7654 32"), is_iban("GB82 WEST 1234 5698 7654 33")
    (True, False)
    """
    plain = text.replace(" ", "").upper()
    if len(plain) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


PERSONAL: Final = {
    "email": Detector(
        "email",
        r"@|%40",
        r"(?i)[\p{L}\p{N}._%+'-]*[\p{L}\p{N}_+-](?:@|%40)(?:[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?\.)+[\p{L}]{2,24}",
        _is_mailbox,
    ),
    "card": Detector(
        "card",
        r"\d(?:(?:[ +-]|%20)?\d){12}",
        r"(?:^|[^\w.-]|%[0-9A-Fa-f]{2})(?P<v>\d(?:(?:[ +-]|%20)?\d){12,18})(?:$|[^\w-])",
        is_card,
    ),
    "iban": Detector(
        "iban",
        r"[A-Z]{2}\d{2} ?[A-Z0-9]{4} ?[A-Z0-9]{3}|\b[a-z]{2}\d{2}[a-z0-9]{11}",
        r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b|\b[a-z]{2}\d{2}[a-z0-9]{11,30}\b",
        is_iban,
    ),
    "ip": Detector(
        "ip",
        r"\d\.\d{1,3}\.\d|[0-9a-fA-F]:[0-9a-fA-F:]*:|::",
        r"\b(?:\d{1,3}\.){3}\d{1,3}\b|(?:[0-9a-fA-F]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-fA-F]{0,4})",
        is_address,
    ),
    "phone": Detector(
        "phone",
        r"\+\d|\d{3}[ .)-]",
        r"(?:^|[^\w.+-])(?P<v>\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
        r"|(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4})(?:$|[^\w-])",
        lambda text: 8 <= sum(map(str.isdigit, text)) <= 15,
    ),
}


# --- taking out ---------------------------------------------------------------------------------------------


def _options(*, captures: bool) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = not captures
    return options


class Redactor:
    """Takes out what the detectors find. ``key``: replacements carry a hash with this key."""

    def __init__(self, detectors: Iterable[Detector], key: bytes | None = None, *, at_once: bool = True) -> None:
        """``at_once``: whether the triggers may be looked for in all of an event, as JSON."""
        self._detectors = list(detectors)
        self._at_once = at_once
        self._patterns = [re2.compile(each.pattern, _options(captures=True)) for each in self._detectors]
        self._groups = [1 if "(?P<v>" in each.pattern else 0 for each in self._detectors]
        self._key = key
        self._triggers = re2.Set.SearchSet(_options(captures=False))
        for each in self._detectors:
            self._triggers.Add(each.trigger)
        self._triggers.Compile()

    def event(self, event: dict[str, Any]) -> dict[str, Any]:
        """The same event without them; ``event`` itself where there are none."""
        if self._at_once and not self._triggers.Match(msgspec.json.encode(event)):
            return event
        return {name: value if name in _PLAIN else self._value(value, name, 0) for name, value in event.items()}

    def text(self, text: str) -> str:
        """
        >>> redactor().text("mail to ann@example.org")
        'mail to [redacted:email]'
        """
        found = self._triggers.Match(text)
        for index in sorted(found or ()):
            text = self._taken_out(index, text)
        return text

    def _taken_out(self, index: int, text: str) -> str:
        detector, group = self._detectors[index], self._groups[index]
        parts, done = [], 0
        for match in self._patterns[index].finditer(text):
            begin, end = match.span(group)
            if begin < done or _is_taken_out(text, begin) or not _is_verified(detector, text[begin:end]):
                continue
            quote = _opening_quote(text[begin:end]) if group else ""
            parts += [text[done:begin], quote, self._instead(detector.name, text[begin + len(quote) : end])]
            done = end
        return "".join([*parts, text[done:]]) if parts else text

    def _instead(self, name: str, value: str) -> str:
        if self._key is None:
            return f"[redacted:{name}]"
        return f"[redacted:{name}:{blake2b(value.encode(errors='replace'), key=self._key, digest_size=6).hexdigest()}]"

    def _value(self, value: Any, name: str, depth: int) -> Any:
        """``name`` decides, too: what is called a secret is one."""
        if isinstance(value, str):
            return self._named(value, name) if _is_secret_name(name) else self.text(value)
        if isinstance(value, dict):
            return {
                self.text(key): self._value(each, _meant(key, value, name), depth + 1)
                for key, each in self._within(value, depth)
            }
        if isinstance(value, list):
            return [self._value(each, name, depth + 1) for _, each in self._within(dict(enumerate(value)), depth)]
        return self._number(value, name)

    def _within(self, value: Mapping[Any, Any], depth: int) -> Iterable[tuple[Any, Any]]:
        return value.items() if depth < MAX_DEPTH else ()

    def _named(self, value: str, name: str) -> str:
        return value if _is_kept_value(value) else self._instead(_class_of(name), value)

    def _number(self, value: Any, name: str) -> Any:
        """A PIN may be a number, and so may be a card; truth and absence tell nothing."""
        if value is None or isinstance(value, bool):
            return value
        if _class_of(name) == "password" and _is_secret_name(name):
            return self._instead("password", str(value))
        if isinstance(value, int) and (redacted := self.text(text := str(value))) != text:
            return redacted
        return value


def _is_verified(detector: Detector, value: str) -> bool:
    return detector.verify is None or detector.verify(value)


_TAKEN_OUT = re2.compile(r"\[redacted:[a-z0-9_]+:[0-9a-f]{12}\]", _options(captures=False))


def _is_taken_out(text: str, begin: int) -> bool:
    """Whether a place is in what stands for a value: ``password:`` and a hash look like a name and its secret."""
    at = text.rfind("[redacted:", 0, begin)
    return at >= 0 and (found := _TAKEN_OUT.match(text, at)) is not None and found.end() > begin


_PLAIN: Final = frozenset({"time_unix_s", "category", "level"})
_SECRET_NAME = re2.compile(
    rf"(?i)(?:.*[\W_]|.*[a-z0-9])?(?:{_TELLING}|pwd|(?:set-)?cookies?)", _options(captures=False)
)
_PASSWORD_NAME = re2.compile(rf"(?i).*(?:{_PHRASE}|pwd)", _options(captures=False))
_NAMES: dict[str, bool] = {}
"""What was found out about names, which are few; started over when they are not."""


def _is_secret_name(name: str) -> bool:
    known = _NAMES.get(name)
    if known is None:
        if len(_NAMES) >= 10_000:
            _NAMES.clear()
        known = _NAMES[name] = _SECRET_NAME.fullmatch(name) is not None
    return known


def _meant(key: str, pairs: Mapping[str, Any], name: str) -> str:
    """What a value is called: by its own name, by that beside it (``{"name": "X", "value": …}``), or by the whole."""
    beside = pairs.get("name", pairs.get("key")) if key == "value" else None
    if isinstance(beside, str) and _is_secret_name(beside):
        return beside
    return name if _is_secret_name(name) and not _is_secret_name(key) else key


def _class_of(name: str) -> str:
    if _PASSWORD_NAME.fullmatch(name):
        return "password"
    return "cookie" if "cookie" in name.lower() else "authorization" if "authorization" in name.lower() else "secret"


def _opening_quote(value: str) -> str:
    """What stays, so that JSON in a text is still JSON."""
    bare = value.lstrip("\\")
    return value[: len(value) - len(bare) + 1] if bare[:1] in ('"', "'") else ""


def redactor(
    personal: Iterable[str] = ("email", "card", "iban"),
    patterns: Mapping[str, str] | None = None,
    key: bytes | None = None,
) -> Redactor:
    """Of all secrets, some personal data, and what a person wants taken out besides."""
    own = [Detector(name, pattern, pattern) for name, pattern in (patterns or {}).items()]
    return Redactor([*SECRETS, *(PERSONAL[name] for name in personal), *own], key, at_once=not own)


def redactor_of(settings: RedactionSettings) -> Redactor:
    """As the settings have it. Raises ConfigError where the key cannot be read."""
    key = read_secret("agent.logs.redaction.key_file", settings.key_file) if settings.key_file else None
    return redactor(settings.personal, settings.patterns, key.encode()[:64] if key else None)


def unusable(settings: RedactionSettings) -> Iterator[Finding]:
    """What `redactor_of` would raise, as a check says it."""
    try:
        redactor_of(settings)
    except ConfigError as error:
        yield Finding("redaction", False, str(error), "the agent does not start: give it a file that it can read")
