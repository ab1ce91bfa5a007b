"""The process that serves a version over HTTP: checks every file of it, then loads it, and bounds what a request may ask for.

Promises: nothing of the version is imported, parsed or loaded before all its files are those of the manifest whose digest was given; the
packed code sees no package of this project but its own. A request is refused with one line before more than MAX_BODY_BYTES of it are kept
(413), before its rows become a data frame (400), and when the queue is full (503); a connection without one is closed. Ends within a second
of SIGTERM, whatever it computes.

    python -P -m components.serving.server FOLDER --manifest SHA256 (--host ADDRESS --port PORT | --socket DESCRIPTOR)
"""

import argparse
import asyncio
import base64
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from components.errors import CelebditError, DataRefused, first_line
from components.registry.version_manifest import check_folder
from components.serving.page import IMAGE_PATH, form_page, image_request
from components.serving.request import MAX_BODY_BYTES, Refused, check_body, one_line

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel
    from mlflow.pyfunc.scoring_server import InvocationsResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_OK = 200
_DESCRIPTION_FILE = Path("artifacts/description.json")  # `version_files.py` names it too, and imports a `model` that is not the packed one
_BODY_S = 30.0
_MOST_CONNECTIONS = 64
_STOP_S = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the version that the arguments name; exits with 3 if its files are not those of its manifest."""
    signal.signal(signal.SIGTERM, _end)  # process 1 of a container has no handler of its own while it loads
    parser = argparse.ArgumentParser(prog="components.serving.server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--socket", type=int)
    options = parser.parse_args(arguments)
    sys.dont_write_bytecode = True  # a compiled file beside the sources would be one that was not registered
    try:
        check_folder(options.folder, options.manifest)
        app = application(_load(options.folder), is_student=_is_student(options.folder))
    except CelebditError as refused:
        print(f"{refused.message}; {refused.hint}" if refused.hint else refused.message, file=sys.stderr, flush=True)
        raise SystemExit(refused.exit_code) from None
    _run(app, options)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # a thread that draws images would keep the process until it is done


def _load(folder: Path) -> "PyFuncModel":
    from mlflow.pyfunc import load_model  # noqa: PLC0415 - after the check, which takes none of its seconds

    loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "model")
    assert not loaded, f"the packed code would be hidden by {loaded}"
    try:
        return load_model(str(folder))
    except Exception as error:  # whatever the packed code raises
        raise DataRefused(f"the version cannot be loaded: {type(error).__name__}: {first_line(error)}") from error


def _is_student(folder: Path) -> bool:
    return bool(json.loads((folder / _DESCRIPTION_FILE).read_bytes()).get("is_student", False))


def _run(app: "Starlette", options: argparse.Namespace) -> None:
    import uvicorn  # noqa: PLC0415

    from components.serving.connections import PromptConnection  # noqa: PLC0415

    config = uvicorn.Config(
        app,
        http=PromptConnection,
        host=options.host,
        port=options.port,
        log_level="warning",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_S,
        timeout_keep_alive=5,
    )
    try:
        uvicorn.Server(config).run(sockets=None if options.socket is None else [socket.socket(fileno=options.socket)])
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def application(model: "PyFuncModel", *, is_student: bool) -> "Starlette":
    """Return the HTTP application of a loaded model, with the paths of MLflow's scoring server; a student draws in its default steps."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.pyfunc import scoring_server  # noqa: PLC0415
    from mlflow.version import VERSION  # noqa: PLC0415
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.responses import HTMLResponse, JSONResponse, Response  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    schema, parameters = model.metadata.get_input_schema(), model.metadata.get_params_schema()
    defaults = {parameter.name: parameter.default for parameter in parameters.params} if parameters else {}
    names, steps = list(defaults), int(defaults.get("num_steps", 1))
    drawing = asyncio.Lock()

    async def ping(request: "Request") -> "Response":
        return Response("\n", media_type="application/json")

    async def version(request: "Request") -> "Response":
        return Response(VERSION, media_type="text/plain")

    def refusal(error: Exception) -> "Response":
        if isinstance(error, Refused):
            code = "RESOURCE_LIMIT_EXCEEDED" if error.status == 413 else "BAD_REQUEST"
            return JSONResponse({"error_code": code, "message": error.reason}, status_code=error.status)
        assert isinstance(error, MlflowException), "nothing else is refused"
        # MLflow puts the request in front of the reason.
        reason = one_line(error.message.rpartition("\nError: ")[2])
        return JSONResponse({"error_code": error.error_code, "message": reason}, status_code=error.get_http_status_code())

    async def draw(body: bytes) -> "InvocationsResponse":
        check_body(body, parameters=names, columns=schema.input_names())
        async with drawing:
            return await asyncio.to_thread(scoring_server.invocations, body, "application/json", model, schema)

    async def invocations(request: "Request") -> "Response":
        try:
            answer = await draw(await _read(request))
        except (Refused, MlflowException) as error:
            return refusal(error)
        return Response(answer.response, status_code=answer.status, media_type=answer.mimetype)

    async def image(request: "Request") -> "Response":
        try:
            answer = await draw(image_request(request.query_params.multi_items(), parameters=names))
        except (Refused, MlflowException) as error:
            return refusal(error)
        if answer.status != _OK:
            return Response(answer.response, status_code=answer.status, media_type=answer.mimetype)
        return Response(base64.b64decode(json.loads(answer.response)["predictions"][0]["image"]), media_type="image/png")

    async def page(request: "Request") -> "Response":
        problem = None
        try:
            check_body(image_request(request.query_params.multi_items(), parameters=names), parameters=names, columns=schema.input_names())
        except Refused as refused:
            problem = refused.reason
        url, query = str(request.base_url), request.query_params
        text = form_page(query, default_steps=steps, is_student=is_student, base_url=url, problem=problem)
        return HTMLResponse(text, status_code=_OK if problem is None else 400)

    pages = [Route("/", page), Route(IMAGE_PATH, image), *(Route(path, ping) for path in ("/ping", "/health"))]
    return Starlette(routes=[*pages, Route("/version", version), Route("/invocations", invocations, methods=["POST"])])


async def _read(request: "Request") -> bytes:
    """Return the body of a request.

    Raises:
        Refused: if it is not JSON by its type, is too long, or does not arrive in time.
    """
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise Refused(415, "the body must be JSON in UTF-8: send it with the header Content-Type: application/json")
    too_long = Refused(413, f"the body is longer than the {MAX_BODY_BYTES} bytes that a request may have")
    declared = request.headers.get("content-length", "0")
    is_refused = not declared.isdecimal() or len(declared) > 18 or int(declared) > MAX_BODY_BYTES
    if is_refused and "expect" in request.headers:
        raise too_long  # the client waits for leave to send
    chunks: list[bytes] = []

    async def read() -> None:
        total = 0
        async for chunk in request.stream():
            total += len(chunk)
            if total <= MAX_BODY_BYTES and not is_refused:
                chunks.append(chunk)
        # Read to its end, without keeping it: a client that is still sending would see a broken connection, not the answer.
        if total > MAX_BODY_BYTES or is_refused:
            raise too_long

    try:
        await asyncio.wait_for(read(), _BODY_S)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {_BODY_S:.0f} s") from None
    return b"".join(chunks)


if __name__ == "__main__":
    main()
