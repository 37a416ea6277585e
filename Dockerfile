# The server and the bundled model: non-root, fit for a read-only root file system. docs/deploy.md has the commands.
# BASE is any Debian-like image whose `python` is 3.11 and has venv; pin it by digest for builds that must repeat.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ENV PYTHONDONTWRITEBYTECODE=1
# pip reads these where they are given: a mirror, or a folder of wheels for a build without a network.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
# GPU=1 takes ONNX Runtime with its 280 MB for CUDA; BASE must then bring CUDA itself.
ARG GPU=0
RUN python -m venv /opt/awnet
COPY requirements/server.txt requirements/server-cpu.txt /tmp/
RUN if [ "${GPU}" = 0 ]; then lock=server-cpu; else lock=server; fi \
    && /opt/awnet/bin/python -m pip install --disable-pip-version-check --no-cache-dir --no-deps --require-hashes \
    --requirement "/tmp/${lock}.txt"
WORKDIR /app
COPY awnet awnet
COPY domain domain
COPY server server
COPY model_repository/awnet model_repository/awnet
COPY examples/*.png examples/twins.json examples/
COPY LICENSE LICENSE
# Compiled here, since nothing may be written where it runs; by hash, so that no file time matters. What never runs goes:
# tests of packages, the runtime's tools for making models and its library for programs in C, and pip, which nobody who
# gets in should find. Of the model the latest version stays, as in the wheel. Readable by any user whatever the
# checkout's umask was.
RUN /opt/awnet/bin/python -m compileall -q --invalidation-mode unchecked-hash awnet domain server \
    && /opt/awnet/bin/python -c "import pathlib, shutil; found = pathlib.Path('model_repository/awnet').glob('[0-9]*'); \
    [shutil.rmtree(old) for old in sorted(found, key=lambda folder: int(folder.name))[:-1]]" \
    && find /opt/awnet -path '*/site-packages/*/tests' -type d -prune -exec rm -r {} + \
    && rm -r /opt/awnet/lib/python3*/site-packages/onnxruntime/transformers \
    /opt/awnet/lib/python3*/site-packages/onnxruntime/quantization \
    /opt/awnet/lib/python3*/site-packages/onnxruntime/tools \
    && if [ "${GPU}" = 0 ]; then find /opt/awnet -name 'libonnxruntime.so*' -delete; fi \
    && /opt/awnet/bin/python -m pip uninstall --yes --quiet setuptools pip \
    && chmod -R a+rX,go-w /app /opt/awnet

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="AW-Net server" \
      org.opencontainers.image.description="One forward pass names the class of a picture and says whether it was tampered with" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/awnet /opt/awnet
COPY --from=build /app /app
WORKDIR /app
# HOME, because a number without a name in /etc/passwd has none, and some library always asks.
ENV PATH=/opt/awnet/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    AWNET_HOST=0.0.0.0 \
    AWNET_PORT=8000 \
    AWNET_REPOSITORY=/app/model_repository
USER 10001:10001
# 8000 HTTP, 8001 gRPC where AWNET_GRPC_PORT=8001 is set. The admin port stays on the container's own loopback.
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
# Alive, not ready: a new process helps one that hangs, but not one that is loading, draining or waiting for Triton.
# The interpreter without site-packages answers in 20 ms; `-m server` would import for half a second each time.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-ISc", "import os, socket\nlink = socket.create_connection(('127.0.0.1', int(os.environ['AWNET_PORT'])), 2)\nif os.environ.get('AWNET_TLS_CERTIFICATE', 'none') != 'none':\n    import ssl\n    link = ssl._create_unverified_context().wrap_socket(link)\nlink.sendall(b'GET /v2/health/live HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n')\nraise SystemExit(b' 200 ' not in link.recv(64))"]
ENTRYPOINT ["python", "-m", "server"]
