"""Why a request is not answered, in the form of OpenAI's errors."""

from typing import Any


class RefusedError(Exception):
    """A request that is not answered; the message is one line.

    Args:
        message: what was given, what is allowed.
        status: of HTTP.
        param: name of the field in question.
        code: a word for programs.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
