"""Who may administer: callers on this machine where nobody else can be one, and those who know the token."""

import hmac
from collections.abc import Iterable, Mapping

from gateway.records.errors import NotAllowed

_SCHEME = "bearer "


class Access:
    """`local` says that the server listens on loopback and Unix sockets only. An empty token lets nobody in."""

    def __init__(self, token: str, *, local: bool) -> None:
        self._token = token.encode()
        self._local = local

    def __repr__(self) -> str:
        return f"<Access {'local' if self._local else 'remote'}{', token' if self._token else ''}>"

    def check(self, peer: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raise `NotAllowed` for a caller who may not administer."""
        if self._local or peer.startswith("unix:") or self._knows_token(dict(metadata)):
            return
        raise NotAllowed(
            "loading, unloading and listing models is allowed on a Unix socket, on a server that listens on loopback"
            " only, and with the setting admin_token sent as the metadata `authorization: Bearer <token>`"
        )

    def _knows_token(self, metadata: Mapping[str, str | bytes]) -> bool:
        sent = metadata.get("authorization", "")
        if not self._token or not isinstance(sent, str) or not sent.lower().startswith(_SCHEME):
            return False
        # Takes as long for a wrong token as for a nearly right one.
        return hmac.compare_digest(sent[len(_SCHEME) :].strip().encode(), self._token)
