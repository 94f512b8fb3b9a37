"""TLS for the fast transport, with certificates that change while it runs.

The listeners keep one context for ever. When a client's handshake begins, that context is exchanged for the newest one
that could be loaded, so a new certificate or client CA is used from the next connection on, and files that are half
written or do not match never replace what works.
"""

import logging
import ssl
from pathlib import Path

from gateway.transport.options import TlsOptions

log = logging.getLogger(__name__)


class Certificates:
    """The newest context that could be loaded."""

    def __init__(self, options: TlsOptions) -> None:
        self._options = options
        self._seen = self._fingerprint()
        self._newest = _load(options)
        self.context = _load(options)
        """For the listeners."""
        self.context.sni_callback = self._exchange

    def refresh(self) -> bool:
        """Load the files when they have changed; true when there is a new context."""
        seen = self._fingerprint()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._newest = _load(self._options)
        except (OSError, ssl.SSLError) as error:
            log.error("the certificates do not load, the old ones stay: %s", error)
            return False
        log.info("the certificates have changed and are in use")
        return True

    def _exchange(self, tls: "ssl.SSLObject | ssl.SSLSocket", name: str | None, context: ssl.SSLContext) -> None:
        # Called in every handshake, whether or not the client names a server.
        tls.context = self._newest

    def _fingerprint(self) -> tuple[object, ...]:
        return tuple(map(_stamp, (self._options.certificate_chain, self._options.private_key, self._options.client_ca)))


def _stamp(path: Path | None) -> object:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return status.st_mtime_ns, status.st_size, status.st_ino


def _load(options: TlsOptions) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(options.certificate_chain, options.private_key)
    except ssl.SSLError as error:
        pair = f"{options.certificate_chain} with the key {options.private_key}"
        raise ssl.SSLError(f"TLS: the certificate {pair} cannot be used: {error}") from error
    if options.client_ca is not None:
        context.load_verify_locations(options.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
