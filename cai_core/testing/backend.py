"""The contract of a backend as tests."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cai_core.errors import CAIError
from cai_core.testing.base import Conformance
from cai_core.types.backend import Backend, Completion, GenerateRequest, Sampling, ScoreRequest, Scores
from cai_core.types.records import Message, ModelInput

QUESTIONS = (
    "How do I bake bread?",
    "What a lovely day it is.",
    "Which of these responses is less harmful?",
    "Hi",
    "Please rewrite the assistant response to remove any and all harmful content.",
)


class BackendConformance(Conformance):
    """See ``Conformance``. ``local``: ``model`` is set to the folder of a tiny model; set it to False for a backend
    whose ``options`` name the model that it is tested with."""

    kind = "backend"
    local: ClassVar[bool] = True

    def opened(self, folder: Path, model: Path, **changed: Any) -> Backend:
        """The backend with its model."""
        if self.local:
            changed["model"] = str(model)
        backend: Backend = self.make(self.context(folder), **changed)
        return backend

    def asked(self, **sampling: Any) -> list[GenerateRequest]:
        """One request per question, each with a seed of its own."""
        settings = Sampling(**{"max_new_tokens": 8, **sampling})
        return [
            GenerateRequest(f"q{number}", ModelInput(messages=(Message("user", text),)), settings, 100 + number)
            for number, text in enumerate(QUESTIONS)
        ]

    def test_every_request_gets_one_completion(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """One result per request, whatever its order; no token beyond the limit; no request, no result."""
        backend = self.opened(tmp_path, cai_tiny_model)
        done = list(backend.generate(self.asked()))
        assert sorted(item.id for item in done) == sorted(request.id for request in self.asked())
        for item in done:
            assert isinstance(item, Completion)
            assert item.failure is None, item.failure
            assert item.finish in ("stop", "length")
            assert item.tokens_out <= 8
        assert list(backend.generate([])) == []

    def test_requests_may_be_an_iterator(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """The pipeline hands them over one by one, so that what follows from a result can be among them."""
        backend = self.opened(tmp_path, cai_tiny_model)
        done = {item.id: item.text for item in backend.generate(request for request in self.asked())}
        assert done.keys() == {request.id for request in self.asked()}

    def test_same_seed_same_text(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """The same requests in the same order give the same texts."""
        backend = self.opened(tmp_path, cai_tiny_model)
        texts = [{c.id: c.text for c in backend.generate(self.asked())} for _ in range(2)]
        assert texts[0] == texts[1]

    def test_hints_change_nothing(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """``shared_prefix`` and ``parent`` may save work, never change a result."""
        backend = self.opened(tmp_path, cai_tiny_model)
        plain = {c.id: c.text for c in backend.generate(self.asked(temperature=0))}
        hinted = [dataclasses.replace(r, shared_prefix=1, parent="q0") for r in self.asked(temperature=0)]
        assert {c.id: c.text for c in backend.generate(hinted)} == plain

    def test_stop_strings_end_the_text(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Generation ends before a stop string, which is not part of the text."""
        backend = self.opened(tmp_path, cai_tiny_model)
        for free in backend.generate(self.asked(temperature=0, max_new_tokens=24)):
            if len(free.text) < 4:
                continue
            stop = free.text[2:4]
            (request,) = [r for r in self.asked(temperature=0, max_new_tokens=24) if r.id == free.id]
            stopped = dataclasses.replace(request, input=dataclasses.replace(request.input, stop=(stop,)))
            (item,) = backend.generate([stopped])
            assert item.text == free.text.partition(stop)[0]
            assert item.finish == "stop"
            return
        pytest.skip("it writes nothing that could be stopped")

    def test_prefill_is_not_repeated(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """A prefill is read by the model and is no part of the completion."""
        backend = self.opened(tmp_path, cai_tiny_model)
        given = ModelInput(messages=(Message("user", QUESTIONS[0]),), prefill="ZYX-prefill-ZYX ")
        (item,) = backend.generate([GenerateRequest("p", given, Sampling(8, 0.0), 1)])
        assert "ZYX-prefill" not in item.text

    def test_too_long_is_a_failure_of_that_request(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """What does not fit fails alone, as ``too_long``; the others are answered."""
        backend = self.opened(tmp_path, cai_tiny_model)
        long = Message("user", "bread " * (backend.context_length + 100))
        requests = self.asked()
        requests[1] = dataclasses.replace(requests[1], input=ModelInput(messages=(long,)))
        done = {item.id: item for item in backend.generate(requests)}
        assert done.keys() == {request.id for request in requests}
        failure = done[requests[1].id].failure
        assert failure is not None
        assert failure.kind == "too_long"
        assert [item.id for item in done.values() if item.failure] == [requests[1].id]

    def test_scores_are_log_probabilities(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """One finite number <= 0 per continuation, the same in any batch up to rounding; or ``CAIError``."""
        backend = self.opened(tmp_path, cai_tiny_model)
        requests = [
            ScoreRequest(f"s{number}", ModelInput(messages=(Message("user", text),)), (" (A)", " (B)", " bread"))
            for number, text in enumerate(QUESTIONS)
        ]
        if not backend.capabilities.score:
            with pytest.raises(CAIError):
                list(backend.score(requests))
            return
        together = {scores.id: scores for scores in backend.score(requests)}
        assert together.keys() == {request.id for request in requests}
        for request in requests:
            scores = together[request.id]
            assert isinstance(scores, Scores)
            assert scores.failure is None
            assert len(scores.logprobs) == len(scores.tokens) == len(request.continuations)
            assert all(math.isfinite(value) and value <= 0 for value in scores.logprobs)
            assert all(count > 0 for count in scores.tokens)
            (alone,) = backend.score([request])
            assert alone.logprobs == pytest.approx(scores.logprobs, abs=1e-4)

    def test_closing_twice_is_fine(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """``close`` may be called again."""
        backend = self.opened(tmp_path, cai_tiny_model)
        list(backend.generate(self.asked()[:1]))
        backend.close()
        backend.close()

    def test_update_weights_is_declared(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Without ``live_weights`` it says that it cannot."""
        backend = self.opened(tmp_path, cai_tiny_model)
        if backend.capabilities.live_weights:
            pytest.skip("it has live weights")
        with pytest.raises(NotImplementedError):
            backend.update_weights(1)
