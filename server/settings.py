"""Every setting of the server. Nothing else reads the environment.

A setting `max_batch` is the variable `AWNET_MAX_BATCH` and the option `--max-batch`; the option wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The server's settings, read from `AWNET_*` variables and then from the command line."""

    model_config = SettingsConfigDict(env_prefix="AWNET_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    repository: Path = Field(Path("model_repository"), description="Folder that holds <model>/<version>/model.onnx.")
    model: str = Field("awnet", pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the model to serve.")
    version: str = Field("latest", description="Version to serve: a number, or 'latest' for the highest one.")

    max_body_bytes: int = Field(8 << 20, ge=1, description="Largest request body.")
    max_pixels: int = Field(16_000_000, ge=1, description="Largest picture, width times height.")
    min_side: int = Field(8, ge=1, description="Smallest width or height of a picture, pixels.")
    max_images: int = Field(32, ge=1, description="Most images in one request.")

    threads: int = Field(0, ge=0, description="Worker threads; 0 takes the cores of the affinity mask and the cgroup.")
    max_batch: int = Field(8, ge=1, description="Most images in one execution of the model.")
    queue_capacity: int = Field(
        256, ge=1, description="Images that may wait or run; a request that finds no room gets 503."
    )
    retry_after_seconds: int = Field(1, ge=1, description="Retry-After of a 503 answer.")

    keep_alive_seconds: int = Field(
        75, ge=1, description="Close a connection that has been idle this long; above what balancers keep theirs."
    )
    drain_seconds: float = Field(
        1.0, ge=0, description="After SIGTERM, serve on this long with readiness off so that balancers look away."
    )
    shutdown_seconds: float = Field(
        20.0, ge=0, description="Wait this long for requests in flight before closing their connections."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    access_log: bool = Field(False, description="Log one line for each request.")

    @field_validator("version")
    @classmethod
    def _version(cls, value: str) -> str:
        if value != "latest" and not (value.isascii() and value.isdigit()):
            raise ValueError("must be a number or 'latest'")
        return value
