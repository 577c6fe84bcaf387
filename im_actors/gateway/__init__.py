"""What a gateway does with its clients, without Ray."""

from im_actors.gateway.config import Clock, GatewayConfig
from im_actors.gateway.node import GatewayNode
from im_actors.gateway.tokens import check_token, make_token

__all__ = ["Clock", "GatewayConfig", "GatewayNode", "check_token", "make_token"]
