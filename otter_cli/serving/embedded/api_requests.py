"""The bodies of requests: OpenAI's fields that this server supports, and those of a graft.

What has no effect here is refused unless it asks for nothing: a client must not believe that a
setting acted.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import Field, model_validator

from otter_cli.decoding.sampling import Sampling
from otter_cli.serving.signal_schema import Names, RequestExtension, RequestRefused

# Accepted, and without effect by their meaning: bookkeeping of OpenAI's own service.
_BOOKKEEPING = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls", "tool_choice",
}  # fmt: skip
# Not supported. The values that ask for nothing are accepted.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
}
_MOST_TOP_LOGPROBS = 20


class _GenerationRequest(RequestExtension):
    """What chats and completions share."""

    model: str | None = None
    n: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    seed: int | None = None
    stop: Names = ()
    stream: bool | None = False
    stream_options: dict[str, bool | None] | None = None
    max_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported_fields(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for key, neutral in _NEUTRAL.items():
            if key not in cls.model_fields and body.get(key) not in (None, *neutral):
                raise ValueError(f"{key} is not supported by this server")
        ignored = _BOOKKEEPING | (_NEUTRAL.keys() - cls.model_fields.keys())
        # A field that is null was left out.
        return {k: v for k, v in body.items() if k not in ignored and v is not None}

    @property
    def include_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    def answer_limit(self) -> int | None:
        """The largest number of tokens of an answer, if the request says."""
        return self.max_tokens

    @property
    def top_count(self) -> int:
        """How many of the best tokens to return beside each token."""
        raise NotImplementedError

    @property
    def wants_logprobs(self) -> bool:
        raise NotImplementedError

    def sampling(self, tokens: int) -> Sampling:
        """OpenAI's defaults: temperature 1, every token. Without a seed each request draws anew."""
        return Sampling(
            max_new_tokens=tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(31) if self.seed is None else self.seed,
        )

    def check_stops(self) -> None:
        """Raises RequestRefused for an empty stop string."""
        if "" in self.stop:
            raise RequestRefused(
                "stop: a stop string is empty, and an empty string ends every text at once",
                hint="give the string to end at",
                param="stop",
            )


class ChatRequest(_GenerationRequest):
    """The body of /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=_MOST_TOP_LOGPROBS)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def answer_limit(self) -> int | None:
        limit = self.max_completion_tokens
        return self.max_tokens if limit is None else limit

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs

    @property
    def top_count(self) -> int:
        return self.top_logprobs if self.logprobs else 0


class CompletionRequest(_GenerationRequest):
    """The body of /v1/completions."""

    prompt: Annotated[str | list[int] | list[str] | list[list[int]], MinLen(1)]
    # OpenAI's default for this endpoint.
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=_MOST_TOP_LOGPROBS)

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def top_count(self) -> int:
        return self.logprobs or 0

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts: texts, or lists of token ids."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return [prompt] if single else prompt


class ScoreRequest(RequestExtension):
    """The body of /v1/score: texts, or the messages of one dialogue, to score as they are."""

    model: str | None = None
    input: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _check_one_form(self) -> ScoreRequest:
        if not (self.input or self.messages) or (self.input and self.messages):
            raise ValueError("give input (a text, or a list of texts) or messages, and not both")
        if self.guide or self.stop_when:
            raise ValueError("guide and stop_when act on text that is written, and none is here")
        return self

    @property
    def texts(self) -> list[Any]:
        """The texts; a dialogue counts as one."""
        if self.messages:
            return [plain_messages(self.messages)]
        return [self.input] if isinstance(self.input, str) else list(self.input or ())


def plain_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is text: parts of text are joined. Raises RequestRefused."""
    plain = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise _refused_message(number, "has no role")
        if isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
                raise _refused_message(number, "has a part that is not text")
            content = "".join(map(str, texts))
        if not isinstance(content, str):
            raise _refused_message(number, "has no text as its content")
        plain.append({**message, "content": content})
    return plain


def _refused_message(number: int, problem: str) -> RequestRefused:
    return RequestRefused(
        f"messages.{number} {problem}",
        hint='messages are objects like {"role": "user", "content": "Hello"}',
        param="messages",
    )
