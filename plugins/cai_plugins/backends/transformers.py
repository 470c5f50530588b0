"""A Hugging Face causal language model in this process.

Requests are sorted by length and batched under a token budget, with padding on the left. Where the rows of a batch
begin alike (few-shot examples, a system turn), that prefix goes through the model once. Both change the speed and,
by float rounding, the last digits; never the mathematics.
"""

from __future__ import annotations

import gc
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cai_core.errors import CAIError, UserError
from cai_core.types.backend import Capabilities, Completion, GenerateRequest, ScoreRequest, Scores
from cai_core.types.records import ModelInput, UnitFailure
from cai_plugins.backends.plugin import TransformersOptions

# Our choice: under 64 saved tokens the second forward pass costs more than it saves.
MIN_SAVED_TOKENS = 64
# Our choice: fewer rows than this that begin alike are batched by length with the others, which pads less.
MIN_FAMILY = 4

Row = TypeVar("Row", bound="_Row")
Result = TypeVar("Result")


class TransformersBackend:
    """Generates and scores with one model, opened on first use.

    A row's random numbers are a function of its seed and step alone. Its logits depend on the other rows only by
    float rounding. Special tokens never come out, and text inside an input never becomes one: ``<|im_end|>`` in a
    message is spelled ``< |im_end|>``.
    """

    capabilities = Capabilities(generate=True, score=True, prefix_reuse=True, live_weights=False)

    def __init__(self, options: TransformersOptions, device: str) -> None:
        self.options = options
        self.device = device
        self._model: Any = None
        self._tokenizer: Any = None
        self._specials: tuple[str, ...] = ()
        self._ends: tuple[int, ...] = ()
        self._context_length = 0
        self._shares_cache = False
        self._accepts: frozenset[str] = frozenset()

    # opening -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._model is not None:
            return
        name, trust = self.options.model, self.options.trust_remote_code
        check_model_name(name)
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
            model, loaded = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=_dtype(self.options.dtype, self.device),
                trust_remote_code=trust,
                # Weights in pickle files can run code when they are opened.
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"the model cannot be opened: {_first_line(error)}",
                where=str(name),
                hint="it must be a folder or hub repository of a causal language model with config.json, "
                "safetensors weights and a tokenizer",
            ) from error
        if missing := sorted(loaded["missing_keys"]):
            raise UserError(
                f"the weights lack {len(missing)} tensors, {missing[0]} among them; they would be random",
                where=str(name),
                hint="give a complete causal language model",
            )
        self._model = model.to(self.device).eval()
        self._tokenizer = tokenizer
        text_config = config.get_text_config()
        self._context_length = int(getattr(text_config, "max_position_embeddings", None) or 2048)
        self._specials = tuple(sorted(set(tokenizer.all_special_tokens), key=len, reverse=True))
        own = self._model.generation_config.eos_token_id
        ends = set(tokenizer.all_special_ids) | set(own if isinstance(own, list) else [own])
        # Any special token ends the text: after it comes another turn, which is not part of the answer.
        self._ends = tuple(sorted(end for end in ends if end is not None))
        # Defaults that a model ships (top_k, repetition penalty) would silently change what the recipe asks for.
        self._model.generation_config = GenerationConfig()
        self._accepts = frozenset(inspect.signature(self._model.forward).parameters)
        self._shares_cache = _full_attention(text_config) and "position_ids" in self._accepts

    @property
    def context_length(self) -> int:
        """Tokens that input and output may have together."""
        self._open()
        return self._context_length

    def update_weights(self, version: int) -> None:
        """This backend reads a folder; it follows no policy under training."""
        raise NotImplementedError("the transformers backend has no live weights")

    def close(self) -> None:
        """Free the model. It opens again on the next request."""
        self._model = self._tokenizer = None
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    # from input to tokens ----------------------------------------------------------------------------------------

    def _encode(self, model_input: ModelInput) -> list[int]:
        prefill = self._plain(model_input.prefill)
        if not model_input.messages:
            return list(self._tokenizer(self._plain(model_input.text) + prefill)["input_ids"])
        if not self._tokenizer.chat_template:
            raise UserError(
                "this model has no chat template, so it cannot read a conversation",
                where=self.options.model,
                hint="use a raw-text template (critique_template: paper, labeler format: paper), or a chat model",
            )
        turns = [{"role": m.role, "content": self._plain(m.content)} for m in model_input.messages]
        text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(self._tokenizer(text + prefill, add_special_tokens=False)["input_ids"])

    def _plain(self, text: str) -> str:
        for special in self._specials:
            text = text.replace(special, f"{special[0]} {special[1:]}")
        # A lone surrogate has no UTF-8 form and would stop the tokenizer.
        return text.encode("utf-8", "replace").decode("utf-8")

    def _forward(self, **given: Any) -> Any:
        """The model without the arguments that its architecture does not know (ALiBi models have no positions)."""
        optional = {"position_ids", "logits_to_keep"} - self._accepts
        return self._model(**{name: value for name, value in given.items() if name not in optional})

    # generate ----------------------------------------------------------------------------------------------------

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """One completion per request; see ``Backend``. Sampling is Gumbel-max with the noise of each row's seed."""
        self._open()
        rows = []
        for request in requests:
            try:
                row = _GenerateRow(request, self._encode(request.input))
                self._check_length(row.ids, request.sampling.max_new_tokens)
            except _Unfit as unfit:
                yield Completion(request.id, "", "error", failure=unfit.failure)
            except _template_errors() as error:
                yield Completion(request.id, "", "error", failure=_template_failure(error))
            else:
                rows.append(row)
        for batch in self._batches(rows):
            for done, result in self._run(batch, self._generate_batch):
                if isinstance(result, UnitFailure):
                    yield Completion(done.request.id, "", "error", tokens_in=len(done.ids), failure=result)
                else:
                    yield result

    @torch.inference_mode()
    def _generate_batch(self, rows: Sequence[_GenerateRow]) -> list[Completion]:
        ids, mask = self._pad([row.ids for row in rows])
        start = ids.shape[1]
        cache, shared = self._shared_prefix([row.ids for row in rows])
        if cache is not None:
            # The shared tokens come first, the padding between them and the rest of each row.
            rest, rest_mask = self._pad([row.ids[shared:] for row in rows])
            ids = torch.cat([ids.new_tensor([rows[0].ids[:shared]]).expand(len(rows), -1), rest], 1)
            mask = torch.cat([mask.new_ones(len(rows), shared), rest_mask], 1)
            start = ids.shape[1]
        samplings = [row.request.sampling for row in rows]
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(
                do_sample=False,  # the arg max of logits with Gumbel noise is a sample
                max_new_tokens=max(s.max_new_tokens for s in samplings),
                eos_token_id=list(self._ends) or None,
                pad_token_id=self._pad_id(),
                use_cache=True,
            ),
            logits_processor=LogitsProcessorList([_GumbelMax(rows, start, self.device)]),
            stopping_criteria=StoppingCriteriaList([_RowEnds(rows, start, self._tokenizer)]),
        )
        return [self._completion(row, output[i, start:].tolist()) for i, row in enumerate(rows)]

    def _completion(self, row: _GenerateRow, tokens: list[int]) -> Completion:
        request = row.request
        finish: Any = "length"
        tokens = tokens[: request.sampling.max_new_tokens]
        used = len(tokens)
        for index, token in enumerate(tokens):
            if token in self._ends:
                # Rows that ended early are filled up with the pad token, which they did not generate.
                used = index + (token != self._pad_id())
                tokens, finish = tokens[:index], "stop"
                break
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cuts = [at for stop in request.input.stop if (at := text.find(stop)) >= 0]
        if cuts:
            text, finish = text[: min(cuts)], "stop"
        return Completion(request.id, text, finish, tokens_in=len(row.ids), tokens_out=used)

    # score -------------------------------------------------------------------------------------------------------

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
        """One score per request; see ``Backend``. The input is encoded once and the continuations on their own, so
        all continuations follow the same tokens. Raises ``CAIError`` when two of them encode alike."""
        self._open()
        rows = []
        for request in requests:
            try:
                row = _ScoreRow(request, self._encode(request.input), self._continuations(request))
                self._check_length(row.ids, row.longest)
            except _Unfit as unfit:
                yield Scores(request.id, (), (), failure=unfit.failure)
            except _template_errors() as error:
                yield Scores(request.id, (), (), failure=_template_failure(error))
            else:
                rows.append(row)
        for batch in self._batches(rows):
            for done, result in self._run(batch, self._score_batch):
                if isinstance(result, UnitFailure):
                    yield Scores(done.request.id, (), (), tokens_in=len(done.ids), failure=result)
                else:
                    yield result

    def _continuations(self, request: ScoreRequest) -> list[list[int]]:
        encoded = [
            list(self._tokenizer(self._plain(text), add_special_tokens=False)["input_ids"])
            for text in request.continuations
        ]
        for i, ids in enumerate(encoded):
            if not ids:
                raise CAIError(f"continuation {request.continuations[i]!r} has no tokens", where=self.options.model)
            for j in range(i):
                if ids == encoded[j] and request.continuations[i] != request.continuations[j]:
                    raise CAIError(
                        f"{request.continuations[j]!r} and {request.continuations[i]!r} have the same tokens, so this "
                        "model cannot tell them apart",
                        where=self.options.model,
                        hint="use another model as judge",
                    )
        return encoded

    @torch.inference_mode()
    def _score_batch(self, rows: Sequence[_ScoreRow]) -> list[Scores]:
        sums = self._score_with_cache(rows) if self._shares_cache else self._score_plain(rows)
        return [
            Scores(row.request.id, tuple(row_sums), tuple(len(c) for c in row.continuations), tokens_in=len(row.ids))
            for row, row_sums in zip(rows, sums, strict=True)
        ]

    def _score_with_cache(self, rows: Sequence[_ScoreRow]) -> list[list[float]]:
        cache, shared = self._shared_prefix([row.ids for row in rows])
        ids, mask = self._pad([row.ids[shared:] for row in rows])
        mask = torch.cat([mask.new_ones(len(rows), shared), mask], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = self._forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions[:, shared:],
            past_key_values=cache if cache is not None else DynamicCache(config=self._model.config),
            use_cache=True,
            logits_to_keep=1,
        )
        first = output.logits[:, -1].float().log_softmax(-1)
        flat = [(i, k, c) for i, row in enumerate(rows) for k, c in enumerate(row.continuations)]
        sums = [[0.0] * len(row.continuations) for row in rows]
        picked = first[[i for i, _, _ in flat], [c[0] for _, _, c in flat]].tolist()
        for (i, k, _), value in zip(flat, picked, strict=True):
            sums[i][k] = value

        # Second tokens and later: every continuation goes on from its own copy of its row's cache.
        width = max(len(c) for _, _, c in flat) - 1
        if width == 0:
            return sums
        copies = max(len(row.continuations) for row in rows)
        cache = output.past_key_values
        del output
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        tail = torch.full((len(rows) * copies, width), self._pad_id(), dtype=torch.long, device=self.device)
        tail_mask = torch.zeros_like(tail)
        for i, k, c in flat:
            tail[i * copies + k, : len(c) - 1] = torch.tensor(c[:-1])
            tail_mask[i * copies + k, : len(c) - 1] = 1
        lengths = mask.sum(1).repeat_interleave(copies)
        logits = self._forward(
            input_ids=tail,
            attention_mask=torch.cat([mask.repeat_interleave(copies, 0), tail_mask], 1),
            position_ids=lengths[:, None] + torch.arange(width, device=self.device)[None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        for i, k, c in flat:
            if len(c) > 1:
                later = logits[i * copies + k, : len(c) - 1].float().log_softmax(-1)
                sums[i][k] += float(later.gather(1, torch.tensor(c[1:], device=self.device)[:, None]).double().sum())
        return sums

    def _score_plain(self, rows: Sequence[_ScoreRow]) -> list[list[float]]:
        """Without a cache, for models whose cache cannot be copied or shared: every continuation a row of its own."""
        sums: list[list[float]] = [[0.0] * len(row.continuations) for row in rows]
        flat = [(i, k, c) for i, row in enumerate(rows) for k, c in enumerate(row.continuations)]
        keep = max(len(c) for _, _, c in flat) + 1
        ids, mask = self._pad([rows[i].ids + c for i, _, c in flat])
        logits = self._forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=keep,
        ).logits
        for index, (i, k, c) in enumerate(flat):
            steps = logits[index, -len(c) - 1 : -1].float().log_softmax(-1)
            sums[i][k] = float(steps.gather(1, torch.tensor(c, device=self.device)[:, None]).double().sum())
        return sums

    # batches -----------------------------------------------------------------------------------------------------

    def _check_length(self, ids: Sequence[int], new: int) -> None:
        if not ids:
            raise _Unfit(UnitFailure("unparseable", "the input has no tokens"))
        if len(ids) + new > self._context_length:
            raise _Unfit(
                UnitFailure(
                    "too_long",
                    f"{len(ids)} tokens of input and {new} of output exceed the model's {self._context_length}",
                )
            )

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Batches of similar length under the token budget, longest first so that memory runs out at once or never.
        Rows that begin alike stay together where there are enough of them."""
        families: dict[tuple[int, ...], list[Row]] = defaultdict(list)
        for row in rows:
            families[tuple(row.ids[:MIN_SAVED_TOKENS])].append(row)
        groups = [family for family in families.values() if len(family) >= MIN_FAMILY]
        groups.append([row for family in families.values() if len(family) < MIN_FAMILY for row in family])
        for group in groups:
            batch: list[Row] = []
            widest = 0
            for row in sorted(group, key=lambda row: (-len(row.ids), row.request.id)):
                widest = max(widest, row.padded)
                full = (len(batch) + 1) * widest > self.options.token_budget or len(batch) >= self.options.max_batch
                if batch and full:
                    yield batch
                    batch, widest = [], row.padded
                batch.append(row)
            if batch:
                yield batch

    def _run(
        self, rows: list[Row], work: Callable[[list[Row]], list[Result]]
    ) -> Iterator[tuple[Row, Result | UnitFailure]]:
        """``work`` on the rows, in halves where memory does not suffice."""
        waiting = [rows]
        while waiting:
            batch = waiting.pop()
            try:
                results: list[Any] = work(batch)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                gc.collect()
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()
                if len(batch) > 1:
                    half = len(batch) // 2
                    waiting += [batch[half:], batch[:half]]
                    continue
                results = [UnitFailure("infra", "out of memory with this request alone in the batch")]
            yield from zip(batch, results, strict=True)

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids in rows)
        padded = [[self._pad_id()] * (width - len(ids)) + list(ids) for ids in rows]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in rows]
        return torch.tensor(padded, device=self.device), torch.tensor(mask, device=self.device)

    def _pad_id(self) -> int:
        if self._tokenizer.pad_token_id is not None:
            return int(self._tokenizer.pad_token_id)
        return self._ends[0] if self._ends else 0

    def _shared_prefix(self, rows: Sequence[Sequence[int]]) -> tuple[DynamicCache | None, int]:
        """The key-value cache of the rows' common beginning, once per row, and its length; or None and 0."""
        first, last = min(rows), max(rows)
        limit = min(len(ids) for ids in rows) - 1  # every row keeps a token whose logits are wanted
        shared = 0
        while shared < limit and first[shared] == last[shared]:
            shared += 1
        if not self._shares_cache or shared * (len(rows) - 1) <= MIN_SAVED_TOKENS:
            return None, 0
        cache = DynamicCache(config=self._model.config)
        self._forward(
            input_ids=torch.tensor([first[:shared]], device=self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(len(rows))
        return cache, shared


class _Row:
    """A request with its tokens. ``padded``: tokens that it takes up in a batch."""

    request: Any
    ids: list[int]
    padded: int


class _GenerateRow(_Row):
    def __init__(self, request: GenerateRequest, ids: list[int]) -> None:
        self.request = request
        self.ids = ids
        self.padded = len(ids) + request.sampling.max_new_tokens


class _ScoreRow(_Row):
    def __init__(self, request: ScoreRequest, ids: list[int], continuations: list[list[int]]) -> None:
        self.request = request
        self.ids = ids
        self.continuations = continuations
        self.longest = max(len(c) for c in continuations)
        self.padded = len(ids) + len(continuations) * self.longest


class _Unfit(Exception):
    def __init__(self, failure: UnitFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _GumbelMax(LogitsProcessor):
    """Turns arg max into sampling: arg max of logits / T + Gumbel noise is a draw from softmax(logits / T)."""

    def __init__(self, rows: Sequence[_GenerateRow], start: int, device: str) -> None:
        self.rows = [(i, row.request.sampling) for i, row in enumerate(rows) if row.request.sampling.temperature > 0]
        self.generators = {}
        for i, _ in self.rows:
            seed = rows[i].request.seed
            generator = torch.Generator(device=device)
            # The generator on CPU reads the lower 32 bits only; fold the upper ones into them.
            self.generators[i] = generator.manual_seed((seed ^ (seed >> 32)) & (2**63 - 1))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for i, sampling in self.rows:
            # Drawn for rows that have ended too, and of the whole vocabulary: the stream depends on the step alone.
            noise = torch.empty(scores.shape[1], device=scores.device).exponential_(generator=self.generators[i])
            logits = scores[i] / sampling.temperature
            if sampling.top_p < 1:
                logits = _nucleus(logits, sampling.top_p)
            scores[i] = logits - noise.clamp_min(torch.finfo(torch.float32).tiny).log()
        return scores


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of tokens with at least ``top_p`` of the probability; the others get -inf."""
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = before >= top_p
    drop[0] = False
    return logits.masked_fill(drop.scatter(0, order, drop), float("-inf"))


class _RowEnds(StoppingCriteria):
    """Ends a row at its own ``max_new_tokens`` or once its text holds a stop string."""

    def __init__(self, rows: Sequence[_GenerateRow], start: int, tokenizer: Any) -> None:
        self.rows = rows
        self.start = start
        self.tokenizer = tokenizer
        self.ended = [False] * len(rows)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        for i, row in enumerate(self.rows):
            if self.ended[i]:
                continue
            stops = row.request.input.stop
            if step >= row.request.sampling.max_new_tokens:
                self.ended[i] = True
            elif stops:
                # A token has at least a byte, so the stop string that the new token completes lies in this tail.
                tail = max(len(stop.encode()) for stop in stops) + 8
                text = self.tokenizer.decode(input_ids[i, max(self.start, input_ids.shape[1] - tail) :])
                self.ended[i] = any(stop in text for stop in stops)
        return torch.tensor(self.ended, device=input_ids.device)


def check_model_name(name: str) -> None:
    """Raises ``UserError`` when ``name`` is a folder that is no model, or looks like a folder and is not there."""
    if not name:
        raise UserError("the backend was given no model", hint="set a model under `models:` in the recipe")
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise UserError("no such model folder", where=name, hint="check the path under `models:`")
        return
    if not folder.is_dir():
        raise UserError("a model is a folder, and this is a file", where=name, hint="give the folder it lies in")
    if not (folder / "config.json").is_file():
        raise UserError("the model folder has no config.json", where=name, hint="give a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            "the model folder has no weights (*.safetensors)",
            where=name,
            hint="weights in other formats are not opened; save them with save_pretrained of transformers",
        )
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise UserError(
            "the model folder has no tokenizer",
            where=name,
            hint="copy the tokenizer of the base model into it (tokenizer.json, tokenizer_config.json)",
        )


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        # On CPU bfloat16 is two orders of magnitude slower than float32.
        return torch.float32 if device == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _full_attention(config: Any) -> bool:
    """Whether every layer sees every token: then a cache may have padding in the middle, and can be copied."""
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return all(layer == "full_attention" for layer in layers)
    stateful = ("ssm_cfg", "state_size", "mamba_d_state", "linear_num_key_heads", "attention_chunk_size")
    return getattr(config, "sliding_window", None) is None and not any(hasattr(config, name) for name in stateful)


def _template_errors() -> tuple[type[Exception], ...]:
    from jinja2.exceptions import TemplateError

    return (TemplateError,)


def _template_failure(error: Exception) -> UnitFailure:
    return UnitFailure("infra", f"the model's chat template refused the conversation: {_first_line(error)}")


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
