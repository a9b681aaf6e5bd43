"""The labelling page's server: a local address with a random token, nothing outside the session's images."""

from __future__ import annotations

import hmac
import json
import mimetypes
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnlib.errors import UserError, install
from rods.labels.label_set import VALID
from rods.labels.labels import CONSENSUS
from rods.labels.session import RATER, Answers, ConflictError, raters

if TYPE_CHECKING:
    from flask import Flask

PAGE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.html", "page.js"))
GRID = "grid"  # a second way to rate images: thumbnails to click
MAX_BODY = 16_384
HOSTS = ("127.0.0.1", "localhost")
Html = tuple[str, dict[str, str]]  # text and headers


def make_app(answers: Answers, *, token: str) -> Flask:
    """The Flask application of a session; every address starts with the token.

    Raises UserError: flask is not installed.
    """
    try:
        from flask import Flask, Response, abort, jsonify, request
    except ImportError:
        raise UserError(f"the labelling page needs flask, which is not installed: {install('label')}") from None
    app, session = Flask(__name__, static_folder=None), answers.session
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    modes = [mode for mode in ("image", "pair") if session.of_mode(mode)]

    _protect(app, token)

    @app.get(f"/{token}/")
    def start() -> Html:
        ways = [*modes[:1], GRID, *modes[1:]] if modes[:1] == ["image"] else modes
        return _page({"page": "start", "modes": ways, "progress": _progress(answers, modes)}, token)

    @app.get(f"/{token}/rate/<rater>/<mode>")
    def rate(rater: str, mode: str) -> Html:
        known(rater, "image" if mode == GRID else mode)
        answers_to = session.answers_to("image" if mode == GRID else mode)
        valid = next(a for a, verdict in session.labels.verdicts.items() if verdict == VALID)
        what = {"answers": answers_to, "verdicts": session.labels.verdicts, "valid": valid}
        return _page({"page": "rate", "rater": rater, "mode": mode, **what}, token)

    @app.get(f"/{token}/items/<rater>/<mode>")
    def items(rater: str, mode: str) -> Response:
        known(rater, mode)
        return jsonify(answers.view(rater, mode))

    @app.post(f"/{token}/items/<rater>/<mode>")
    def record(rater: str, mode: str) -> tuple[Response, int]:
        known(rater, mode)
        data = request.get_json(silent=True)
        if not isinstance(data, dict):
            abort(400)
        try:
            answers.record(rater, data)
        except ConflictError as e:
            return jsonify(error=str(e)), 409
        except ValueError as e:
            return jsonify(error=str(e)), 400
        return jsonify(saved=data["id"]), 200

    @app.get(f"/{token}/image/<key>")
    def image(key: str) -> Response:
        path = session.images.get(key)  # the only paths that exist here: nothing of the address reaches the disk
        if path is None:
            abort(404)
        return Response(path.read_bytes(), mimetype=mimetypes.guess_type(path)[0])

    def known(rater: str, mode: str) -> None:
        if not RATER.fullmatch(rater) or mode not in modes:
            abort(404)

    return app


def _protect(app: Flask, token: str) -> None:
    """Requests without the token, or under another name of this machine, get nothing; browsers keep nothing."""
    from flask import Response, abort, request

    @app.before_request
    def guard() -> None:
        given = request.path.split("/")[1]
        if not hmac.compare_digest(given.encode(), token.encode()):
            abort(404)
        if (request.host or "").split(":")[0] not in HOSTS:  # another name for this machine: DNS rebinding
            abort(403)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Cache-Control"] = "private" if (response.mimetype or "").startswith("image/") else "no-store"
        return response


def _progress(answers: Answers, modes: Sequence[str]) -> list[dict[str, Any]]:
    """How much each rater has answered."""
    rows = []
    for rater in [*raters(answers.lines), CONSENSUS]:
        for mode in modes:
            answered = [row["answer"] is not None for row in answers.view(rater, mode)]
            rows.append({"rater": rater, "mode": mode, "total": len(answered), "done": sum(answered)})
    return rows


def _page(data: Mapping[str, Any], token: str) -> Html:
    """The page with its data; nothing that it shows can load or run anything else."""
    nonce = secrets.token_urlsafe(16)
    text = json.dumps({**data, "root": f"/{token}/", "consensus": CONSENSUS}).replace("<", "\\u003c")
    html = PAGE.read_text().replace("{{nonce}}", nonce).replace("{{script}}", SCRIPT.read_text())
    html = html.replace("{{data}}", text)
    policy = "default-src 'none'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    policy += f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
    return html, {"Content-Security-Policy": policy}


def serve(answers: Answers, *, port: int, token: str, say: Any = print) -> None:
    """Serve the session on 127.0.0.1 until interrupted. Raises UserError: the port is taken."""
    app = make_app(answers, token=token)
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """The address holds the token: it goes to no log."""

    try:
        server = make_server("127.0.0.1", port, app, threaded=True, request_handler=Quiet)
    except (OSError, SystemExit):  # werkzeug exits by itself where the port is taken
        raise UserError(f"--port={port} is taken on 127.0.0.1; give another, or 0 for any that is free") from None
    say(f"http://127.0.0.1:{server.server_port}/{token}/")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
