"""Trained models on disk: files of this library (`hub.models`), and weights of others (`hub.interop`)."""

from shortflow.hub.models import (
    FORMAT,
    Model,
    build_flow,
    check,
    describe,
    fingerprint,
    load,
    outline,
    read_header,
)

__all__ = ["FORMAT", "Model", "build_flow", "check", "describe", "fingerprint", "load", "outline", "read_header"]
