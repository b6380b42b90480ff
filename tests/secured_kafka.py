"""A Kafka that trusts nobody: TLS, SASL, and an authorizer that denies whatever no ACL allows."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from streammon import servers
from streammon.broker.kafka.security import librdkafka_options
from streammon.config import KafkaSettings
from tests.certificates import Authority
from tests.support import wait_until

LISTENERS = {"PASSWORDS": "SASL_SSL", "CERTIFICATES": "SSL", "TOKENS": "SASL_SSL", "OPEN": "PLAINTEXT"}
ADMIN = "admin"
PLAIN_PASSWORD = "plain-password"
LOGIN = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class SecuredKafka:
    """Its addresses by what a listener asks for, the authority of its certificates, and who may do what."""

    addresses: dict[str, str]
    authority: Authority
    directory: Path

    def kafka(self, user: str, password: str | None = None) -> dict[str, Any]:
        """The configuration of a SCRAM user, for the listener PASSWORDS."""
        file = self.directory / f"{user}.password"
        file.write_text(f"{password or password_of(user)}\n")
        sasl = {"mechanism": "SCRAM-SHA-256", "username": user, "password_file": str(file)}
        return {"tls": self.tls(), "sasl": sasl}

    def tls(self, **changed: Any) -> dict[str, Any]:
        return {"enabled": True, "ca_file": str(self.authority.file), **changed}

    def permit(self, user: str, acls: Iterable[tuple[str, str, str]]) -> None:
        """Let the user do exactly this: (operation, kind of resource, name), where … at the end is any ending."""
        wanted = [_binding(user, *acl) for acl in acls]
        everything = AclBindingFilter(
            ResourceType.ANY,
            None,  # type: ignore[arg-type]  # which means any; the annotation forgets it
            ResourcePatternType.ANY,
            f"User:{user}",
            None,  # type: ignore[arg-type]  # as above
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        for deleted in self._admin.delete_acls([everything]).values():
            deleted.result()
        for created in self._admin.create_acls(wanted).values() if wanted else ():
            created.result()
        wait_until(lambda: len(self._admin.describe_acls(everything).result()) == len(set(wanted)), 10, "the ACLs")

    @cached_property
    def _admin(self) -> AdminClient:
        options = librdkafka_options(KafkaSettings(**self.kafka(ADMIN)))
        return AdminClient(
            {"bootstrap.servers": self.addresses["PASSWORDS"], **options}, logger=logging.getLogger("admin")
        )


def password_of(user: str) -> str:
    return f"{user}-password"


def unsecured_token(user: str, life_s: float = 600.0) -> str:
    """A JSON web token that nobody signed; the listener TOKENS takes it."""
    now = int(time.time())
    claims = {"sub": user, "iat": now, "exp": now + life_s}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims)
    ]
    return ".".join([*parts, ""])


@contextmanager
def secured_kafka(
    directory: Path, users: Iterable[str], start: Callable[..., servers.Server]
) -> Iterator[SecuredKafka]:
    authority = Authority(directory)
    ports = dict(zip(LISTENERS, servers.free_ports(len(LISTENERS)), strict=True))
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    passwords = {user: password_of(user) for user in [ADMIN, *users]}
    properties = _properties(addresses, authority.issue("broker"), authority.file)
    with start("kafka", directory / "kafka", port=ports["PASSWORDS"], properties=properties, users=passwords):
        yield SecuredKafka(addresses, authority, directory)


def _properties(addresses: dict[str, str], certificate: Path, authorities: Path) -> dict[str, str]:
    listeners = ",".join(f"{name}://{address}" for name, address in addresses.items())
    return {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{{inner_port}}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in LISTENERS.items())
        + ",CONTROLLER:SSL",
        "inter.broker.listener.name": "CERTIFICATES",
        "listener.name.certificates.ssl.client.auth": "required",
        "listener.name.controller.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificate),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authorities),
        "listener.name.passwords.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.passwords.plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required "
        f'user_{ADMIN}="{PLAIN_PASSWORD}";',
        "listener.name.passwords.scram-sha-256.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.passwords.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.tokens.oauthbearer.sasl.jaas.config": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:CN=broker;User:{ADMIN};User:CN={ADMIN}",
    }


def _binding(user: str, operation: str, kind: str, name: str) -> AclBinding:
    pattern = ResourcePatternType.PREFIXED if name.endswith("…") else ResourcePatternType.LITERAL
    return AclBinding(
        ResourceType[kind.upper().replace(" ", "_")],
        name.removesuffix("…"),
        pattern,
        f"User:{user}",
        "*",
        AclOperation[operation],
        AclPermissionType.ALLOW,
    )
