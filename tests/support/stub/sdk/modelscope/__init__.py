"""As much of `modelscope` as the documents name."""

from recorder import snapshot_download

__all__ = ["snapshot_download"]
