"""Servers with the published contracts of vLLM and SGLang, in front of a transformers model. They refuse every request
that has another form, and compute one solution at a time. Also an offline engine that samples with transformers."""

import os

import torch

from erprm_trl import TransformersSampler


MODEL_FIELDS = {"object": "model", "created": 0, "parent": None}


class FakeEngine:
    """
    An ASGI app. `bodies` holds the bodies of all requests for scores, and `authorizations` all headers. `fault(n)` is
    the fault of the n-th request for scores: `None`, a status, or another answer.
    """

    owner, path = "", ""

    def __init__(self, model, *, root, max_model_len=256, name="served", fault=lambda index: None, cards=()):
        from starlette.applications import Starlette
        from starlette.routing import Route

        self.model, self.name, self.max_model_len, self.fault = model.eval(), name, max_model_len, fault
        own = {"id": name, "owned_by": self.owner, "root": root, "max_model_len": max_model_len, **MODEL_FIELDS}
        self.cards = [*cards, own]
        self.bodies, self.authorizations = [], set()
        routes = [Route("/v1/models", self.models), Route(self.path, self.scores, methods=["POST"])]
        self.app = Starlette(routes=routes)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.authorizations.add(dict(scope["headers"]).get(b"authorization", b"").decode())
        await self.app(scope, receive, send)

    async def models(self, request):
        from starlette.responses import JSONResponse

        return JSONResponse({"object": "list", "data": self.cards})

    async def scores(self, request):
        from starlette.responses import JSONResponse, Response

        body = await request.json()
        self.bodies.append(body)
        fault = self.fault(len(self.bodies) - 1)
        if isinstance(fault, int):
            headers = {"Retry-After": "0"} if fault in (429, 503) else {}
            return JSONResponse({"error": {"message": f"no, {fault}"}}, fault, headers)
        if fault is not None:
            return Response(fault, media_type="application/json")
        try:
            return JSONResponse(self.answer(**body))
        except (AssertionError, TypeError) as error:
            return JSONResponse({"error": {"message": f"not the contract: {error!r}"}}, 400)

    @torch.no_grad()
    def logits(self, ids):
        """Logits at every token."""
        assert ids and all(type(token_id) is int for token_id in ids)
        return self.model(input_ids=torch.tensor([ids])).logits[0].float()


class FakeVLLM(FakeEngine):
    """`vllm serve FOLDER --runner pooling`, where the folder has a token classification model."""

    owner, path = "vllm", "/pooling"

    def answer(self, *, model, task, input, use_activation, encoding_format):
        assert (model, task, encoding_format) == (self.name, "token_classify", "float")
        # The server accepts max_model_len tokens, but does not answer if it computes them in several parts.
        assert all(len(ids) < self.max_model_len for ids in input)
        outputs = []
        for index, ids in enumerate(input):
            logits = self.logits(ids)
            if use_activation:
                logits = logits.softmax(-1) if logits.shape[-1] > 1 else logits.sigmoid()
            outputs.append({"index": index, "object": "pooling", "data": logits.tolist()})
        usage = {"prompt_tokens": sum(map(len, input)), "total_tokens": sum(map(len, input))}
        return {"id": "pool-1", "object": "list", "created": 0, "model": model, "data": outputs[::-1], "usage": usage}


class FakeSGLang(FakeEngine):
    """`python -m sglang.launch_server --model-path FOLDER`, where the folder has a causal language model."""

    owner, path = "sglang", "/generate"

    def answer(
        self,
        *,
        input_ids,
        sampling_params,
        return_logprob,
        return_text_in_logprobs,
        logprob_start_len,
        token_ids_logprob,
    ):
        assert return_logprob and sampling_params["max_new_tokens"] == 0 and not return_text_in_logprobs
        # The context must have room for one more token.
        assert all(len(ids) < self.max_model_len for ids in input_ids)
        answers = []
        for ids, start, asked in zip(input_ids, logprob_start_len, token_ids_logprob, strict=True):
            logprobs = self.logits(ids).log_softmax(-1)
            # The log-probabilities at a token are those that the tokens before it predict.
            entries = [
                [[logprobs[at - 1, token_id].item(), token_id, None] for token_id in asked]
                for at in range(1, len(ids) + 1)
            ]
            info = {
                "prompt_tokens": len(ids),
                "input_token_ids_logprobs": [None, *entries[start:-1]],
                "output_token_ids_logprobs": [entries[-1]],
            }
            answers.append({"text": "", "output_ids": [], "meta_info": info})
        return answers


class FakeOfflineEngine(TransformersSampler):
    """
    A `VLLMSampler` that loads the saved policy with transformers. It refuses to start where a real engine would wait
    for the other processes of the training.

    Attributes:
        started (`list[str]`):
            Folders that the engines of this process loaded.
        alive (`list`):
            Engines of this process that are not closed.
    """

    started: list[str] = []
    alive: list["FakeOfflineEngine"] = []

    def __init__(self, model, tokenizer, engine_kwargs, **settings):
        launcher = [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")]
        assert not launcher and not any(name.startswith("TORCHELASTIC") for name in os.environ)
        self.engine_kwargs = engine_kwargs
        self.started.append(str(model))
        self.alive.append(self)
        loaded = TransformersSampler.from_pretrained(model)
        super().__init__(loaded.model, tokenizer, batch_size=64, **settings)

    def close(self):
        """Ends the engine."""
        self.alive.remove(self)
