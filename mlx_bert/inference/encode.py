"""``SentenceEncoder``: texts to embeddings, with sentence-transformers' folders, semantics and numbers.

Dimensions: N texts, B batch, L tokens, D width of an embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from tokenizers import Encoding, normalizers
from tqdm.auto import tqdm

from mlx_bert.checkpoint import FromPretrained, new_folder, ready_folder, write_json
from mlx_bert.core import BertCore
from mlx_bert.inference import similarity as similarities
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.precision import compute_dtype
from mlx_bert.inference.quantization import check_precision, quantize_embeddings
from mlx_bert.inference.sentence_modules import POOLED, TOKENS, Features, Pooling, load_module, save_module
from mlx_bert.inference.settings import EncoderSettings, read_module_list, read_settings
from mlx_bert.tokenizer import Batch, Tokenizer

logger = logging.getLogger("mlx_bert")

OUTPUTS = (POOLED, TOKENS, None)


class SentenceEncoder(FromPretrained):
    """An encoder, its tokenizer, and the modules that make one vector of each text.

    Args:
        core: the encoder.
        tokenizer: its tokenizer.
        modules: what stands behind the encoder; None for mean pooling.
        settings: lengths, prompts, similarity; see :class:`mlx_bert.inference.settings.EncoderSettings`.
    """

    def __init__(
        self,
        core: BertCore,
        tokenizer: Tokenizer,
        modules: Sequence[nn.Module] | None = None,
        settings: EncoderSettings | None = None,
    ) -> None:
        self.core = core.eval().compile_graphs()
        self.tokenizer = tokenizer
        if modules is None:
            modules = [Pooling({"word_embedding_dimension": core.get_hidden_size(), "pooling_mode_mean_tokens": True})]
        self.modules = list(modules)
        settings = settings or EncoderSettings()
        self.prompts = {"query": "", "document": "", **settings.prompts}
        self.default_prompt_name = settings.default_prompt_name
        if self.default_prompt_name is not None:
            self.prompt_text(None, self.default_prompt_name)
        self.truncate_dim = settings.truncate_dim
        self.similarity_fn_name = similarities.check_name(settings.similarity_fn_name)
        self.do_lower_case = settings.do_lower_case
        if self.do_lower_case:
            _lower_first(tokenizer)
        bounds = [bound for bound in (settings.max_seq_length, tokenizer.max_length) if bound]
        self.max_seq_length = min(*bounds, core.config.max_tokens) if bounds else core.config.max_tokens

    @classmethod
    def from_pretrained(
        cls, source: str | Path, dtype: str | mx.Dtype | None = None, revision: str | None = None, **settings: Any
    ) -> Self:
        """Load a sentence-transformers folder, any encoder's folder (then with mean pooling), or a hub id.

        Args:
            source: folder or hub id.
            dtype: ``"float32"``, ``"float16"``, ``"bfloat16"``, or ``"stored"`` for the weights as they are. None: on a
                GPU float16 (quantised weights as stored), on a CPU float32; see
                :func:`mlx_bert.inference.precision.compute_dtype`. Pooling and what follows it are in float32 in any
                case. Load a model that is to be trained, or saved as it was, in ``"float32"``.
            revision: branch, tag or commit of a hub id.
            settings: replace what the folder says: ``max_seq_length``, ``prompts``, ``default_prompt_name``,
                ``truncate_dim``, ``similarity_fn_name``, ``do_lower_case``.

        Raises:
            FileNotFoundError: no such folder, or files are missing.
            ValueError: an unsupported architecture or module, or weights that do not fit.
        """
        folder = ready_folder(source, revision)
        backbone, listed = read_module_list(folder)
        settings = read_settings(folder, backbone, settings)
        core = BertCore.from_pretrained(backbone, compute_dtype(dtype, backbone), compute_additional_pooling=False)
        modules = None if listed is None else [load_module(kind, path) for kind, path in listed]
        return cls(core, Tokenizer.from_pretrained(backbone), modules, settings)

    def get_embedding_dimension(self) -> int:
        """``D``, the width of what :meth:`encode` returns."""
        sizes = [module.output_size for module in self.modules if module.output_size is not None]
        width = sizes[-1] if sizes else self.core.get_hidden_size()
        return min(width, self.truncate_dim) if self.truncate_dim else width

    # --- encoding -----------------------------------------------------------------------------------------------------

    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        output_value: str | None = POOLED,
        convert_to_numpy: bool = True,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray | mx.array | list[mx.array] | list[Features] | Features:
        """Embed texts.

        Args:
            texts: one text, or any number. Longer ones than ``max_seq_length`` tokens are truncated.
            batch_size: a batch holds as many tokens as this many texts of 128.
            prompt_name: which of ``prompts`` goes before each text.
            prompt: goes before each text; wins over ``prompt_name``. Without either, ``default_prompt_name`` counts.
            normalize_embeddings: scale to length 1, whatever the modules do; None and False leave it to them.
            truncate_dim: keep this many values (before normalising); None for the model's own ``truncate_dim``.
            precision: ``"float32"``, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``; see
                :func:`mlx_bert.inference.quantization.quantize_embeddings`.
            output_value: ``"sentence_embedding"``; ``"token_embeddings"`` for the vectors of a text's tokens; None for
                everything there is.
            convert_to_numpy: numpy, otherwise an ``mx.array``. Concerns sentence embeddings only.
            show_progress_bar: None shows one when the log level is INFO or lower.

        Returns:
            ``(N, D)`` float32 (or quantised), in the order of the texts; ``(D,)`` for a single text; ``(0, D)`` for
            none. Token embeddings: a list of ``(L, D)``. Everything: a list of dicts.

        Raises:
            ValueError: an unknown prompt name, precision or output value, or something that is not text.
        """
        check_precision(precision)
        if output_value not in OUTPUTS:
            raise ValueError(f"[encode] expected output_value to be one of {OUTPUTS} but got {output_value!r}.")
        if truncate_dim is not None and truncate_dim < 1:
            raise ValueError(f"[encode] expected truncate_dim of at least 1 but got {truncate_dim}.")
        single = isinstance(texts, str)
        texts = check_texts([texts] if single else texts)
        prompt = self.prompt_text(prompt, prompt_name)
        truncate_dim = truncate_dim or self.truncate_dim
        show = logger.isEnabledFor(logging.INFO) if show_progress_bar is None else show_progress_bar
        run = {"prompt": prompt, "batch_size": batch_size, "truncate_dim": truncate_dim}
        with tqdm(total=len(texts), unit="text", desc="Embedding", disable=not show) as progress:
            if output_value != POOLED:
                everything = self._features(texts, progress=progress, **run)
                items = [item[TOKENS] for item in everything] if output_value == TOKENS else everything
                return items[0] if single else items
            result = self._embed(texts, bool(normalize_embeddings), progress=progress, **run)
        if precision != "float32":
            result = quantize_embeddings(result, precision)
        result = result[0] if single else result
        return result if convert_to_numpy else mx.array(result)

    def encode_query(self, texts: str | Sequence[str], batch_size: int = 32, **options: Any) -> Any:
        """:meth:`encode` for what is searched with: the ``"query"`` prompt, unless another is given."""
        if options.get("prompt_name") is None and options.get("prompt") is None:
            options["prompt_name"] = "query"
        return self.encode(texts, batch_size, **options)

    def encode_document(self, texts: str | Sequence[str], batch_size: int = 32, **options: Any) -> Any:
        """:meth:`encode` for what is searched in: the ``"document"`` prompt, unless another is given."""
        if options.get("prompt_name") is None and options.get("prompt") is None:
            options["prompt_name"] = "document"
        return self.encode(texts, batch_size, **options)

    def encode_stream(
        self, texts: Iterable[str], batch_size: int = 32, window: int = 4096, **options: Any
    ) -> Iterator[np.ndarray]:
        """Embed texts from a generator of any length in bounded memory.

        Args:
            texts: read ``window`` at a time; each window is sorted and batched for itself.
            options: as for :meth:`encode`, for sentence embeddings.

        Yields:
            ``(n, D)`` for the next ``n <= window`` texts, in their order.
        """
        source = iter(texts)
        while part := list(islice(source, window)):
            yield self.encode(part, batch_size, **options)

    def __call__(self, batch: Batch, prompt_length: int = 0) -> Features:
        """Run encoder and modules on a padded batch; nothing is evaluated."""
        output = self.core(*batch[:2], token_type_ids=batch.token_type_ids)
        return self.apply_modules(output.last_hidden_state, batch.attention_mask, prompt_length)

    def apply_modules(
        self, hidden_states: mx.array, attention_mask: mx.array | None = None, prompt_length: int = 0
    ) -> Features:
        """Run the modules on what the encoder made of a batch, ``(B, L, width of the encoder)``."""
        features: Features = {TOKENS: hidden_states, "attention_mask": attention_mask, "prompt_length": prompt_length}
        for module in self.modules:
            features = module(features)
        return features

    def _embed(
        self, texts: list[str], normalize: bool, *, prompt: str, truncate_dim: int | None, **run: Any
    ) -> np.ndarray:
        prompt_length = self.prompt_length(prompt)

        def forward(batch: Batch, _: list[Encoding]) -> mx.array:
            pooled = self(batch, prompt_length)[POOLED][:, :truncate_dim].astype(mx.float32)
            return similarities.normalize(pooled) if normalize else pooled

        result = None
        for indices, pooled in run_batches(
            [prompt + text for text in texts] if prompt else texts,
            self.tokenizer,
            forward,
            model=self.core,
            max_length=self.max_seq_length,
            **run,
        ):
            if result is None:
                result = np.empty((len(texts), pooled.shape[1]), np.float32)
            result[indices] = np.asarray(pooled)
        if result is None:
            width = self.get_embedding_dimension()
            return np.empty((0, min(width, truncate_dim or width)), np.float32)
        return result

    def _features(
        self, texts: list[str], *, prompt: str, truncate_dim: int | None, **run: Any
    ) -> list[dict[str, mx.array | None]]:
        """All features of each text, without padding."""
        prompt_length = self.prompt_length(prompt)

        def forward(batch: Batch, encodings: list[Encoding]) -> list[dict[str, mx.array]]:
            features = self(batch, prompt_length)
            left = self.tokenizer.padding_side == "left"
            items = []
            for row, encoding in enumerate(encodings):
                length = len(encoding)
                place = slice(-length, None) if left else slice(0, length)
                item = {
                    "input_ids": batch.input_ids[row, place],
                    TOKENS: features[TOKENS][row, place].astype(mx.float32),
                }
                if POOLED in features:
                    item[POOLED] = features[POOLED][row, :truncate_dim].astype(mx.float32)
                items.append(item)
            return items

        result: list[Any] = [None] * len(texts)
        for indices, items in run_batches(
            [prompt + text for text in texts] if prompt else texts,
            self.tokenizer,
            forward,
            model=self.core,
            max_length=self.max_seq_length,
            **run,
        ):
            for index, item in zip(indices, items, strict=True):
                result[index] = item
        return result

    # --- prompts ------------------------------------------------------------------------------------------------------

    def prompt_text(self, prompt: str | None = None, name: str | None = None) -> str:
        """What goes before each text: ``prompt``, else the one called ``name``, else the default prompt."""
        if prompt is not None:
            if name is not None:
                logger.warning("Both prompt and prompt_name are given; prompt_name %r is passed over.", name)
            return prompt
        name = name if name is not None else self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(
                f"[encode] expected prompt_name to be one of {', '.join(map(repr, self.prompts))} but got {name!r}."
            )
        return self.prompts[name]

    def prompt_length(self, prompt: str) -> int:
        """Tokens of the prompt with the special one before it, without the one behind."""
        if not prompt:
            return 0
        (encoding,) = self.tokenizer.encode([prompt], max_length=self.max_seq_length)
        return len(encoding) - bool(encoding.special_tokens_mask[-1])

    # --- similarity ---------------------------------------------------------------------------------------------------

    def similarity(self, a: similarities.Embeddings, b: similarities.Embeddings) -> mx.array:
        """Every embedding of ``a`` against every one of ``b`` by ``similarity_fn_name``: ``(N, M)``."""
        return similarities.similarity(a, b, self.similarity_fn_name)

    def similarity_pairwise(self, a: similarities.Embeddings, b: similarities.Embeddings) -> mx.array:
        """Row ``i`` of ``a`` against row ``i`` of ``b`` by ``similarity_fn_name``: ``(N,)``."""
        return similarities.similarity_pairwise(a, b, self.similarity_fn_name)

    # --- saving -------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder that sentence-transformers loads with equal outputs.

        Raises:
            FileExistsError: it is there already and ``overwrite`` is False.
        """
        with new_folder(folder, overwrite) as partial:
            self.core.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
            for index, module in enumerate(self.modules, start=1):
                kind = type(module).__name__
                save_module(module, partial / f"{index}_{kind}")
                listed.append(
                    {
                        "idx": index,
                        "name": str(index),
                        "path": f"{index}_{kind}",
                        "type": f"sentence_transformers.models.{kind}",
                    }
                )
            write_json(partial / "modules.json", listed)
            lengths = {"max_seq_length": self.max_seq_length, "do_lower_case": self.do_lower_case}
            write_json(partial / "sentence_bert_config.json", lengths)
            config: dict[str, Any] = {
                "model_type": "SentenceTransformer",
                "prompts": self.prompts,
                "default_prompt_name": self.default_prompt_name,
                "similarity_fn_name": self.similarity_fn_name,
            }
            if self.truncate_dim is not None:
                config["truncate_dim"] = self.truncate_dim
            write_json(partial / "config_sentence_transformers.json", config)


def check_texts(texts: Any, where: str = "encode") -> list[str]:
    """Texts as a list.

    Raises:
        ValueError: something in it is not a string, with its place.
    """
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise ValueError(f"[{where}] expected a string or a sequence of strings but got {type(texts).__name__}.")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"[{where}] expected text {index} to be a string but got {type(text).__name__}. "
                "Remove missing values before encoding."
            )
    return texts


def _lower_first(tokenizer: Tokenizer) -> None:
    """Lower-case before whatever else the tokenizer does to a text; special tokens stay as they are."""
    present = tokenizer.fast.normalizer
    tokenizer.fast.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([present] if present else [])])
