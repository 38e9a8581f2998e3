"""As much of `modelscope.hub.api` as the documents name."""

from recorder import HubApi

__all__ = ["HubApi"]
