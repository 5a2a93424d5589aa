"""A model at an address: its URL and headers, the features that its server supports, and how its responses are read."""

from collections.abc import Callable, Iterable, Mapping
import json
import logging
import os
import re
from typing import Any, NamedTuple
import urllib.parse

from diversity_jax.core.errors import InputError
from diversity_jax.llm.cost_forecast import estimate_tokens
from diversity_jax.llm.providers.answers import ModelAnswer
from diversity_jax.llm.providers.outcomes import (
    Refused,
    Reply,
    ServerError,
    Transient,
    classify,
    error_of,
    parse_body,
    read_error,
)
from diversity_jax.llm.providers.registry import PROVIDERS, parse_model
from diversity_jax.llm.types import EndpointConfig, Request

_logger = logging.getLogger(__name__)
_KEY_LIKE = re.compile(r"(sk-|AIza|Bearer )[\w*.-]{6,}")
_SHOWN_CHARACTERS = 160
_LEAST_SECRET_CHARACTERS = 6
_AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
LIMITS = ("max_tokens", "max_completion_tokens")  # names of the token limit


class _Feature(NamedTuple):
    """A field of requests that not every server supports: words of a refusal of it, and what is done instead."""

    words: re.Pattern[str]
    instead: str


# In the order in which a refusal is searched for their words.
FEATURES: Mapping[str, _Feature] = {
    "system": _Feature(
        re.compile(
            r"system.?(role|message|prompt|instruction)|developer instruction|role.{0,80}\bsystem\b|must alternate"
        ),
        "the instructions now stand before the question",
    ),
    "json_schema": _Feature(
        re.compile(
            r"json.?schema|structured.?output|guided|grammar|(response|output)_?(schema|format|mime_?type)|json mode"
            "|requested parameters|(min|max)(items|length|imum)|additionalproperties"
        ),
        "the JSON schema now stands in the prompt, and is checked here only",
    ),
    "json_object": _Feature(
        re.compile(r"json_object|response_format|json mode|response_?mime_?type|requested parameters"),
        "the prompt alone asks for JSON",
    ),
    "temperature": _Feature(re.compile("temperature"), "the model's own temperature is used"),
    "max_tokens": _Feature(re.compile("max_(completion_)?tokens"), "max_completion_tokens is sent instead"),
    "max_completion_tokens": _Feature(re.compile("max_(completion_)?tokens"), "max_tokens is sent instead"),
}
# A refusal of the format as a whole, not of one of its types.
_NO_FORMAT = re.compile(r"response_format\W*(is|was|are|not|parameter|field|$)|json mode|mime_?type")
_REFUSES = re.compile(
    "not (be )?(support|enabled|allow|permit|available|implement|recogni)|n't support|unsupported|unknown|unrecogni"
    "|unexpected|invalid|unavailable|only the default|must alternate|does not (accept|take)|extra (input|field)"
    "|deprecated|no longer|no endpoints found"
)
# A 4xx that names the format is about it, in whatever words: "Input should be 'text'", "enabled only for ...".
_NAMES_THE_FORMAT = re.compile("response_format|json_schema")
# A refusal of a field's value, not of the field.
_OUT_OF_RANGE = re.compile(r"too (large|small|high|low)|at (most|least)|(less|greater) than|\b(between|range)\b|exceed")
_HAS_RANGE = (*LIMITS, "temperature")
_SEARCHED_CHARACTERS = 400  # of a refusal; further on it may quote the prompt
_MAY_NAME_A_FEATURE = (400, 404, 415, 422, 500, 501)


class Endpoint:
    """A model at an address, with the API key of the environment.

    Args:
      name: `provider:model`.
      base_url: address of another server than the provider's, which may need no key; None for the provider's.
      role: what the model is used as, such as `judge`; messages begin with it.
      key_needed: False where no request will be sent, as in a forecast.

    Attributes:
      without: names in `FEATURES` that the server does not support, as far as is known; grows with its refusals.
      learnt: called with every name that is added.

    Raises:
      InputError: a bad name or address, or no key though one is needed.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None,
        role: str,
        config: EndpointConfig = EndpointConfig(),
        *,
        key_needed: bool = True,
    ):
        provider, self.model = parse_model(name, role)
        self.info = info = PROVIDERS[provider]
        self.name, self.role, self.base_url, self.config = name, role, base_url, config
        if base_url is not None and not _is_address(base_url):
            raise self.bad_address()
        variables = (config.key_variable,) if config.key_variable else info.key_variables
        self._key_variables = " or ".join(variables)
        keys = {variable: os.environ.get(variable, "").strip() for variable in variables}
        variable, self.key = next(((variable, key) for variable, key in keys.items() if key), ("", "none"))
        if key_needed and variables and not variable and (base_url is None or config.key_variable):
            raise InputError(f"{role}: {name} needs an API key; set {self._key_variables} in the environment")
        if not (self.key.isascii() and self.key.isprintable()):
            raise InputError(f"{variable}: holds characters that no API key has; set it again")
        url = base_url or (info.url_variable and os.environ.get(info.url_variable)) or info.public_url
        if not _is_address(url):
            raise InputError(f"{info.url_variable}: {url!r} is no address; correct it or unset it")
        parts = urllib.parse.urlsplit(url)
        self.query = "&".join(filter(None, (parts.query, config.query)))
        path = parts.path.rstrip("/").removesuffix("/chat/completions")  # often pasted with it
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, query="", fragment="")
        self.url = urllib.parse.urlunsplit(bare)  # without password and query
        self.headers = config.header_items()
        self.body = config.body_fields()
        self._secrets = [self.key, *self.headers.values(), *(value for _, value in urllib.parse.parse_qsl(self.query))]
        self.without: frozenset[str] = frozenset()
        self.learnt: Callable[[str], None] = lambda name: None
        self._estimates_announced = False

    @property
    def is_public(self) -> bool:
        """Whether the address is the provider's own."""
        return self.url == self.info.public_url

    def address(self, path: str) -> str:
        """The address of a path, with the query of the base URL."""
        return f"{self.url}/{path}" + (f"?{self.query}" if self.query else "")

    def key_headers(self) -> dict[str, str]:
        """The header of the key, and those of the configuration."""
        host = urllib.parse.urlsplit(self.url).hostname or ""
        name = self.config.key_header or ("api-key" if host.endswith(_AZURE_HOSTS) else "authorization")
        value = f"Bearer {self.key}" if name.lower() == "authorization" else self.key
        return {name: value} | self.headers

    def bad_address(self) -> InputError:
        """The error for a malformed base URL."""
        example = "http://127.0.0.1:8000/v1"
        return InputError(f"{self.role} base_url: {self.base_url!r} is no address; write one such as {example}")

    def refuse(self, *fields: str) -> None:
        """Raises InputError where one of these fields is set; for providers that cannot pass it on."""
        values = {"query": self.query, "body": self.body, "key_header": self.config.key_header}
        if given := [name for name in fields if values[name]]:
            what = f"{self.name} takes no {' and no '.join(given)}"
            raise InputError(f"{self.role} endpoint: {what}; leave it out, or ask through openai:MODEL")

    def shown(self, message: str) -> str:
        """A server's message as one short line without the key, a header's value, or anything that looks like one."""
        for secret in self._secrets:
            if len(secret) >= _LEAST_SECRET_CHARACTERS:
                message = message.replace(secret, "***")
        return " ".join(_KEY_LIKE.sub("***", message).split())[:_SHOWN_CHARACTERS]

    def features(self, request: Request, *, limits: Iterable[str] = LIMITS) -> frozenset[str]:
        """The names in `FEATURES` that a request is sent with.

        Args:
          limits: names of the token limit, of which the first that the server supports is sent.
        """
        sent = {"system", "temperature", next(name for name in limits if name not in self.without)}
        if request.schema is not None:
            sent |= {"json_schema"} if "json_schema" not in self.without else {"json_object"}
        return frozenset(sent) - self.without

    def instructions(self, request: Request, sent: frozenset[str]) -> tuple[str, str]:
        """System and user text; with the schema in words where it is not sent, and all in one without a system role."""
        system, user = request.system, request.user
        if request.schema is not None and "json_schema" not in sent:
            wish = "Answer with one JSON value and nothing around it. It must fit this JSON schema, named"
            system += f"\n\n{wish} {request.stage}:\n{json.dumps(request.schema)}"
        return (system, user) if "system" in sent else ("", f"{system}\n\n{user}" if system else user)

    def read(
        self,
        request: Request | None,
        sent: frozenset[str],
        status: int,
        headers: Mapping[str, str],
        content: Any,
        reader: Callable[[Any], ModelAnswer],
    ) -> Reply:
        """The reply in a response of the server.

        Args:
          request: for estimates of missing token counts; None counts them as 0.
          sent: the features that it was sent with.
          status, headers: of the response.
          content: its body as bytes or text, or its JSON value.
          reader: `answers.read_chat` or `answers.read_gemini`.

        Raises:
          Transient: another attempt may succeed.
          Refused: the server refuses the request.
        """
        value = parse_body(content) if isinstance(content, bytes | str) else content
        if not 200 <= status < 300 or error_of(value):
            raise self.failure(read_error(status, headers, content if value is None else value), sent)
        try:
            return self._reply(request, reader(value))
        except ValueError:
            raise self.garbled(content) from None

    def failure(self, error: ServerError, sent: frozenset[str] = frozenset()) -> Exception:
        """The exception for a server's error; a feature that was sent and is refused is left out from now on."""
        shown = self.shown(error.message)
        if error.status in _MAY_NAME_A_FEATURE and not error.about_content:
            refused = self._refused_features(error, sent)
            if refused - self.without:
                self._learn(refused - self.without, f"{error.status} {shown}")
            if refused:
                return Transient("adapted", f"{', '.join(sorted(refused))}: not supported")
        return classify(error, shown, self.model.lower())

    def _refused_features(self, error: ServerError, sent: frozenset[str]) -> frozenset[str]:
        words = f"{error.code} {error.param} {error.message[:_SEARCHED_CHARACTERS]}".lower()
        words = words.replace("invalid_request_error", "")  # the type of every refusal
        refuses = bool(_REFUSES.search(words))
        about_format = error.status < 500 and bool(_NAMES_THE_FORMAT.search(words))
        for name, feature in FEATURES.items():
            if name in sent and (refuses or (about_format and "json" in name)) and feature.words.search(words):
                if name in _HAS_RANGE and _OUT_OF_RANGE.search(words):
                    return frozenset()
                if name in LIMITS and not set(LIMITS) - self.without - {name}:
                    return frozenset()  # an answer without a limit could exceed every cap
                no_format = name == "json_schema" and (error.param == "response_format" or _NO_FORMAT.search(words))
                typed = re.search("json_schema|type|schema", words.replace("'type'", ""))
                return frozenset({name, "json_object"} if no_format and not typed else {name})
        return frozenset()

    def _learn(self, names: Iterable[str], why: str) -> None:
        self.without |= frozenset(names)
        for name in sorted(names):
            self.learnt(name)
        instead = "; ".join(FEATURES[name].instead for name in FEATURES if name in set(names))
        what = " or ".join(sorted(names))
        _logger.warning("%s: %s does not take %s (%s); %s", self.role, self.name, what, why, instead)

    def explain(self, refused: Refused, calls: int) -> InputError:
        """The error that ends a run, because no call can succeed; quotes the server."""
        server, words, of_calls = f"{self.role}: {self.url}", refused.detail, f"every call, {calls:,} so far"
        line = {
            "account": f"{server} says the account is out of credit or quota ({words}); add some, then run again",
            "key": f"{server} does not accept the API key for {self.name} ({words}); set {self._key_variables} to a "
            "valid one",
            "model": f"{server} knows no {self.name} ({words}); correct the model's name or the base URL",
            "access": f"{server} turns {of_calls}, of {self.name} away ({words}); check the API key "
            f"({self._key_variables}), the model's name and the base URL",
            "content": f"{self.role}: the content filter or context of {self.name} refuses {of_calls} ({words}); name "
            "another model or corpus",
        }.get(refused.scope, f"{self.role}: {self.name} rejects {of_calls} ({words}); correct the model's settings")
        return InputError(line)

    def garbled(self, content: Any = "") -> Transient:
        """The failure of an attempt whose response cannot be read; quotes its beginning."""
        text = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
        quoted = f": {shown}" if (shown := self.shown(text[:_SEARCHED_CHARACTERS])) else ""
        return Transient("garbled", f"{self.url} sent something that is no answer of a model{quoted}")

    def _reply(self, request: Request | None, answer: ModelAnswer) -> Reply:
        usage, text = answer.usage, answer.text
        prompt, completion = usage.prompt, usage.completion
        # A count of 0 for a text that is not empty is no count.
        prompt, completion = prompt or None, completion if completion or not text else None
        if request is not None and (prompt is None or completion is None):
            if text and not self._estimates_announced:
                self._estimates_announced = True
                _logger.warning(
                    "%s: %s reports no token counts; they are estimated from the text", self.role, self.name
                )
            prompt = prompt or estimate_tokens(request.system) + estimate_tokens(request.user)
            completion = completion or estimate_tokens(text) + estimate_tokens(answer.thoughts)
        return Reply(
            text=text,
            prompt_tokens=prompt or 0,
            completion_tokens=completion or 0,
            cached_tokens=usage.cached,
            billed_dollars=usage.dollars,
            served_by=answer.served_by,
            failure=_failure(answer, completion or 0),
            worth_a_second_try=answer.ending in ("complete", "none") and not text.strip(),
        )


def _failure(answer: ModelAnswer, completion_tokens: int) -> tuple[str, str] | None:
    return {
        "blocked": ("refused", f"the prompt was blocked ({answer.word})"),
        "none": ("empty", "the server sent no answer"),
        "cut": ("truncated", f"the answer was cut at {completion_tokens} tokens; raise max_output_tokens"),
        "refused": ("refused", f"the model refused, or ended with {answer.word}"),
        "interrupted": ("interrupted", f"the server ended it with {answer.word}"),
    }.get(answer.ending, None if answer.text.strip() else ("empty", _emptiness(answer)))


def _emptiness(answer: ModelAnswer) -> str:
    beside = "; there are thoughts alone" if answer.thoughts.strip() else ""
    return "the answer is empty" + beside + (f"; it ended with {answer.word}" if "call" in answer.word else "")


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
