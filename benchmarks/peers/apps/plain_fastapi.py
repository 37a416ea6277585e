"""Plain FastAPI: what its tutorial has for an uploaded file and a blocking library, a `def` that runs in a thread.

Documented at fastapi.tiangolo.com: "Request Files" (UploadFile), "Concurrency and async / await" (`def` for what
blocks), "Server Workers" (`workers`). uvicorn on uvloop and httptools, as `fastapi[standard]` installs it.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile
from onnx_model import PROCESSES, Model

app = FastAPI()
model = Model()


@app.post("/predict")
def predict(image: UploadFile) -> dict[str, Any]:
    (answer,) = model.answers([image.file.read()])
    return answer


@app.get("/health")
def health() -> None: ...


if __name__ == "__main__":
    uvicorn.run(
        "plain_fastapi:app",
        host="127.0.0.1",
        port=int(sys.argv[1]),
        workers=PROCESSES,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
