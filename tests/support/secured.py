"""An embedded broker that demands TLS, a password and rights, and everything a client needs to satisfy it."""

import datetime
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.engine.embedded_kafka import EmbeddedKafka
from app.rights import Right
from tests.support.broker import OwnBrokers

MECHANISM: Final = "SCRAM-SHA-512"
_ANSWER_S: Final = 10
_RESOURCES: Final = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
_DAY: Final = datetime.timedelta(days=1)


class Authority:
    """A certificate authority that lives for one test."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(True, 0))

    def issue(self, name: str, password: str = "") -> tuple[str, str]:
        """Return a certificate for 127.0.0.1 and its key, both as PEM; the key encrypted if there is a password."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return _pem(self._sign(subject, key.public_key(), address)), _secret_pem(key, password)

    @property
    def pem(self) -> str:
        """The authority's own certificate."""
        return _pem(self.certificate)

    def write(self, path: Path) -> Path:
        """Write the authority's own certificate, which is what clients trust."""
        path.write_text(self.pem)
        return path

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - _DAY,
            not_valid_after=now + _DAY,
        )
        return builder.add_extension(extension, critical=True).sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _secret_pem(key: ec.EllipticCurvePrivateKey, password: str) -> str:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


@dataclass(frozen=True, slots=True)
class Secured:
    """A broker whose listener for clients demands SASL_SSL and rights; nobody has any until :meth:`grant`."""

    kafka: EmbeddedKafka
    ca: Path
    admin: AdminClient
    """On the broker's own listener: plain text, and everything is allowed there."""

    def user(self, name: str) -> dict[str, Any]:
        """Make a user; return the settings with which Holdfast logs in as it."""
        password = f"secret of {name}"
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsertion = UserScramCredentialUpsertion(name, info, password.encode())
        for future in self.admin.alter_user_scram_credentials([upsertion]).values():
            future.result(_ANSWER_S)
        return {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": MECHANISM,
            "sasl_username": name,
            "sasl_password": password,
            "ssl_ca_location": str(self.ca),
        }

    def grant(self, user: str, rights: Iterable[Right]) -> None:
        for future in self.admin.create_acls([b for right in rights for b in _bindings(user, right)]).values():
            future.result(_ANSWER_S)

    def revoke(self, user: str, right: Right) -> None:
        filters = [
            AclBindingFilter(
                binding.restype,
                binding.name,
                binding.resource_pattern_type,
                binding.principal,
                binding.host,
                binding.operation,
                AclPermissionType.ANY,
            )
            for binding in _bindings(user, right)
        ]
        for future in self.admin.delete_acls(filters).values():
            assert future.result(_ANSWER_S), f"{user} did not have the right {right}"


def _bindings(user: str, right: Right) -> list[AclBinding]:
    return [
        AclBinding(
            _RESOURCES[right.resource],
            right.name,
            ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation[_snake(operation)],
            AclPermissionType.ALLOW,
        )
        for operation in right.operations
    ]


def _snake(operation: str) -> str:
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(operation)).upper()


def secured_config(authority: Authority) -> Mapping[str, str]:
    """Broker properties for TLS with a certificate of the authority, SCRAM and PLAIN, and rights."""
    chain, key = authority.issue("broker")
    login = "org.apache.kafka.common.security.{} required"
    return {
        "listener.security.protocol.map": "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listener.name.client.sasl.enabled.mechanisms": f"{MECHANISM},PLAIN",
        "listener.name.client.scram-sha-512.sasl.jaas.config": login.format("scram.ScramLoginModule") + ";",
        "listener.name.client.plain.sasl.jaas.config": login.format("plain.PlainLoginModule")
        + " user_plain='plain secret';",
        "listener.name.client.ssl.keystore.type": "PEM",
        "listener.name.client.ssl.keystore.certificate.chain": chain,
        "listener.name.client.ssl.keystore.key": key,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # Who comes over the plain listeners: the broker itself, and the test's administrator.
        "super.users": "User:ANONYMOUS",
    }


def certified_config(authority: Authority) -> Mapping[str, str]:
    """Broker properties for TLS that lets in only who has a certificate of the authority."""
    chain, key = authority.issue("broker")
    return {
        "listener.security.protocol.map": "CLIENT:SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listener.name.client.ssl.client.auth": "required",
        "listener.name.client.ssl.keystore.type": "PEM",
        "listener.name.client.ssl.keystore.certificate.chain": chain,
        "listener.name.client.ssl.keystore.key": key,
        "listener.name.client.ssl.truststore.type": "PEM",
        "listener.name.client.ssl.truststore.certificates": authority.pem,
    }


def start_secured(own_broker: OwnBrokers, directory: Path) -> Secured:
    authority = Authority("holdfast test")
    kafka = own_broker(config=secured_config(authority))
    kafka.start()
    assert kafka._ports is not None
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{kafka._ports.internal}", "log_level": 0})
    return Secured(kafka, authority.write(directory / "ca.pem"), admin)
