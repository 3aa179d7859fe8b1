"""Clients of the servers that score: any that answers JSON with JSON, and OpenAI-compatible chat servers."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.clients.chat_client import ChatClient as ChatClient
    from rewards.clients.json_client import JsonClient as JsonClient
    from rewards.clients.json_client import check_url as check_url
    from rewards.clients.json_client import read_api_key as read_api_key

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "chat_client": ["ChatClient"],
        "json_client": ["JsonClient", "check_url", "read_api_key"],
    },
)
