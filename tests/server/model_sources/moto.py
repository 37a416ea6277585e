"""moto's server of S3, whose keys and signatures are checked by botocore's rules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

from benchmarks.harness.processes import Process, free_port
from tests.requires import MOTO_SERVER
from tests.server.tiny import CALL

OPEN = 40  # actions before keys are needed; a request is one or more
SCOPE = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/{}/aws4_request, SignedHeaders=host, Signature=0"
READ = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:GetObject*", "Resource": "*"}]}


class Moto(Process):
    """A bucket `models` with versions, and a user who may read it.

    Args:
        objects: pushed into the bucket under one key, in this order.

    Attributes:
        keys: variables of AWS that reach it.
        versions: versionId of each of the objects.
    """

    def __init__(self, folder: Path, key: str, objects: list[bytes]) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        variables = {"INITIAL_NO_AUTH_ACTION_COUNT": str(OPEN)}
        super().__init__([MOTO_SERVER, "-H", "127.0.0.1", "-p", port], folder / "moto.log", variables)
        self.answering(f"{url}/moto-api/")
        with httpx.Client(base_url=url, **CALL) as client:

            def iam(**form: str) -> str:
                headers = {"authorization": SCOPE.format("iam")}  # says which service is meant
                return client.post("/", data={"Version": "2010-05-08", "UserName": "u", **form}, headers=headers).text

            iam(Action="CreateUser")
            made = iam(Action="CreateAccessKey")
            iam(Action="PutUserPolicy", PolicyName="p", PolicyDocument=json.dumps(READ))
            client.put("/models").raise_for_status()
            enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
            client.put("/models?versioning", content=enabled).raise_for_status()
            somebody = {"authorization": SCOPE.format("s3")}  # an object that is there is replaced by nobody unknown
            pushed = [client.put(f"/models/{key}", content=data, headers=somebody) for data in objects]
            for _ in range(OPEN):
                closed = client.get(f"/models/{key}", headers=somebody).status_code == 403
            assert closed
        self.versions = [answer.headers["x-amz-version-id"] for answer in pushed]

        def found(name: str) -> str:
            match = re.search(f"<{name}>(.*)</{name}>", made)
            assert match is not None, made
            return match[1]

        self.keys = {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": found("AccessKeyId"),
            "AWS_SECRET_ACCESS_KEY": found("SecretAccessKey"),
            "AWS_REGION": "eu-west-1",
        }
