"""TLS in front of a real server, with a certificate of a private authority that is made for the test."""

import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from celebdit_testing.tcp_server import TcpServer, pump, running
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OUTSIDE = "mlflow.outside.example"
"""A name of the server besides those of this machine, which only a proxy resolves."""


@dataclass(frozen=True)
class TlsServer:
    """Where it listens, and the file with the certificate of its authority."""

    url: str
    ca_file: Path


@contextmanager
def tls_in_front_of(upstream: str, folder: Path) -> Iterator[TlsServer]:
    """Accept TLS on 127.0.0.1 and pass the bytes on to the plain server at `upstream`, until the block ends."""
    ca_file, chain_file = _write_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain_file)
    address = urlsplit(upstream)

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection((address.hostname or "", address.port or 80)) as server,
            ):
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join(10)

    with running(TcpServer(Forward)) as listening:
        yield TlsServer(f"https://{listening}", ca_file)


def _write_certificates(folder: Path) -> tuple[Path, Path]:
    """Write the authority's certificate, and the server's with its key; return both files."""
    folder.mkdir(parents=True, exist_ok=True)
    now, authority_key, server_key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private authority")])

    def begin(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(authority, subject, key.public_key(), x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))

    ca = (
        begin(authority, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.DNSName(OUTSIDE), x509.IPAddress(ip_address("127.0.0.1"))]
    server = (
        begin(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), server_key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key = server_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    ca_file, chain_file = folder / "ca.crt", folder / "server.pem"
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    chain_file.write_bytes(key + server.public_bytes(serialization.Encoding.PEM))
    return ca_file, chain_file
