"""Errors as clients of OpenAI's and Anthropic's APIs expect them: status, kind, and what a client may do again."""

from __future__ import annotations

from typing import Any

from ....errors import ContextOverflow, HeadraceError, first_words

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "request_too_large", 415: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip
AGAIN = (408, 429, 500, 503, 529)  # where the same request may work later


class ApiError(Exception):
    """An answer that is an error. param: the field that it is about, code: a word for programs. details: more fields of
    the error; headers: of the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.details = details or {}
        self.headers = {**(headers or {}), **({} if status in AGAIN else {"x-should-retry": "false"})}

    @property
    def kind(self) -> str:
        """The type that both APIs give."""
        return KINDS.get(self.status, "api_error")

    def openai(self) -> dict[str, Any]:
        """The body of OpenAI's APIs."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {**error, **self.details}}

    def anthropic(self, request_id: str) -> dict[str, Any]:
        """The body of Anthropic's."""
        return {"type": "error", "error": {"type": self.kind, "message": self.message}, "request_id": request_id}


class PromptTooLong(ApiError):
    """A prompt that does not fit, in the words by which clients of both APIs know that they should make it shorter."""

    def __init__(self, tokens: int, limit: int, remedy: str) -> None:
        self.tokens, self.limit, self.remedy = tokens, limit, remedy
        super().__init__(
            400,
            f"This model's maximum context length is {limit} tokens. However, your messages resulted in {tokens} "
            f"tokens. {remedy}",
            code="context_length_exceeded",
            param="messages",
            details={"n_prompt_tokens": tokens, "n_ctx": limit},
        )

    def anthropic(self, request_id: str) -> dict[str, Any]:
        text = f"prompt is too long: {self.tokens} tokens > {self.limit} maximum. {self.remedy}"
        return {"type": "error", "error": {"type": self.kind, "message": text}, "request_id": request_id}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, param=param)


def engine_failed(error: BaseException) -> ApiError:
    """What ended a request while it ran: none of its client's mistakes, whatever kind of error it is."""
    return error if isinstance(error, ApiError) else ApiError(500, f"the engine failed: {first_words(error)}")


def of_exception(error: BaseException) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflow):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, HeadraceError):
        return ApiError(400, str(error))
    return ApiError(500, f"the server failed: {type(error).__name__}: {error}")
