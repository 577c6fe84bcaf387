"""The tokens of clients: JSON Web Tokens (RFC 7519) signed with HMAC SHA-256.

PyJWT is in an extra, so it is imported when a secret is configured and not before.
"""

from __future__ import annotations

import re
import time
from typing import Any

from im_actors.errors import Forbidden, SetupError, Unauthenticated

AUDIENCE = "im_actors"
ALGORITHM = "HS256"
CLOCK_SKEW_S = 5
"""By how much the clocks of the token's maker and of the gateway may differ."""
_STORE_ID = re.compile(r"-[0-9a-f]{8}\Z")


def require_jwt() -> Any:
    """The module; SetupError when it is not installed."""
    try:
        import jwt
    except ImportError as error:
        raise SetupError(
            "a token secret is configured, and PyJWT, which checks tokens, is not installed:"
            " pip install 'im-actors[server]'"
        ) from error
    return jwt


def make_token(secret: str, user: str, device: str | None = None, ttl_s: float = 3600) -> str:
    """A token for ``user``, good for ``ttl_s`` seconds from now.

    With ``device`` it is good for that device only; the store id that the SDK appends to a device
    name may be left out.
    """
    issued_s = int(time.time())
    claims: dict[str, Any] = {
        "sub": user,
        "aud": AUDIENCE,
        "iat": issued_s,
        "exp": issued_s + int(ttl_s),
    }
    if device is not None:
        claims["dev"] = device
    return str(require_jwt().encode(claims, secret, algorithm=ALGORITHM))


def check_token(secret: str, token: str | None, user: str, device: str) -> int:
    """Return if ``token`` lets ``user`` in with ``device``: until when, in ms since 1970.

    Unauthenticated: missing, forged, expired or not for this service. Forbidden: a good token, of
    somebody else. The text says which, and repeats nothing of the token.
    """
    if token is None:
        raise Unauthenticated("this server needs a token in HELLO, and there is none")
    claims = _good_claims(secret, token)
    if claims["sub"] != user:
        raise Forbidden(f"the token is not for user {user!r}")
    granted = claims.get("dev")
    if granted is not None and granted not in (device, _STORE_ID.sub("", device)):
        raise Forbidden(f"the token is not for device {device!r}")
    return (int(claims["exp"]) + CLOCK_SKEW_S) * 1000


def _good_claims(secret: str, token: str) -> dict[str, Any]:
    jwt = require_jwt()
    try:
        # The list is what keeps a token out that says "alg": "none".
        claims: dict[str, Any] = jwt.decode(
            token,
            secret,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            leeway=CLOCK_SKEW_S,
            options={"require": ["sub", "aud", "exp"]},
        )
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("the token has expired; get a new one") from None
    except jwt.InvalidSignatureError:
        raise Unauthenticated("the token is not signed with this server's secret") from None
    except jwt.InvalidAlgorithmError:
        raise Unauthenticated(f"the token must be signed with {ALGORITHM}") from None
    except jwt.InvalidAudienceError:
        raise Unauthenticated(f"the token is not for {AUDIENCE!r} (claim aud)") from None
    except jwt.MissingRequiredClaimError as error:
        raise Unauthenticated(f"the token lacks the claim {error.claim}") from None
    except Exception as error:
        # A stranger chose these bytes, and parsing them can fail in more ways than PyJWT names.
        raise Unauthenticated(f"the token cannot be used: {error}") from None
    return claims
