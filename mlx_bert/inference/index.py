"""``EmbeddingIndex``: texts found by meaning, in a folder on disk.

    index.json        what it is, and how much of the other files counts; replaced last, by which an addition is done
    documents.jsonl   id and text of each document, one a line
    offsets.bin       where each line begins, uint64
    vectors.bin       embeddings, for exact search and to rescore what the graph finds
    graph-N.usearch   the graph of N documents, searched by usearch

Dimensions: N documents, Q queries, D values of an embedding, C candidates, K results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from mlx_bert.checkpoint import new_folder, read_json, ready_folder, write_json
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.fingerprint import fingerprint
from mlx_bert.inference.quantization import quantize_embeddings
from mlx_bert.inference.quantized_search import rescored
from mlx_bert.inference.search import nearest
from mlx_bert.inference.stored_vectors import StoredVectors, row_bytes, row_dtype
from mlx_bert.inference.text_files import Record

FORMAT = 1
INDEX, DOCUMENTS, OFFSETS, VECTORS = "index.json", "documents.jsonl", "offsets.bin", "vectors.bin"
METRICS = {"cosine": "cos", "dot": "ip", "euclidean": "l2sq"}  # ours -> usearch's
DTYPES = {"f32": "f32", "f16": "f16", "i8": "i8", "binary": "b1"}
SCALED = ("i8", "binary")  # these keep no lengths
WINDOW = 4096

Documents = Iterable[str | Record]


class EmbeddingIndex:
    """Documents, their embeddings, and a graph to search them by. Made by :meth:`build` or :meth:`load`.

    Attributes:
        folder: where it lies.
        settings: the content of ``index.json``.
    """

    def __init__(self, folder: str | Path, model: str | Path | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise FileNotFoundError(f"[search] {folder} is no index. Make one: mlx-bert search build --index {folder}")
        self.settings = read_json(self.folder / INDEX)
        if self.settings.get("format") != FORMAT:
            raise ValueError(
                f"[search] expected {self.folder / INDEX} to have format {FORMAT} but got "
                f"{self.settings.get('format')!r}. Build the index again."
            )
        self._model = model
        self._encoder: SentenceEncoder | None = None
        self._graph: Any = None
        self._map()
        if model is not None:
            self._model_folder()

    def __len__(self) -> int:
        return self.settings["count"]

    # --- making -------------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        folder: str | Path,
        model: str | Path,
        documents: Documents,
        *,
        embeddings: np.ndarray | None = None,
        dtype: str = "f32",
        vectors: str = "float32",
        metric: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        compute_dtype: str | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> Self:
        """Embed documents and keep them; the folder appears when all are in it.

        Args:
            folder: where.
            model: folder or hub id of the model that embeds documents and queries.
            documents: texts, or records with ids; read once, in bounded memory. Without ids, their numbers from 0.
            embeddings: ``(N, D)`` of the documents, if there are any, such as from ``mlx-bert embed`` with the same
                model and the document prompt; may be memory-mapped.
            dtype: of the graph: ``"f32"``, ``"f16"``, ``"i8"`` or ``"binary"``: 4, 2, 1 or an eighth of a byte each
                value, in memory while searching. The last two are for cosine.
            vectors: ``"float32"`` or ``"int8"``: what results are rescored with, on disk.
            metric: ``"cosine"``, ``"dot"`` or ``"euclidean"``; None takes the model's own.
            query_prompt, document_prompt: go before a text; None takes the model's ``"query"`` and ``"document"``.
            max_length, truncate_dim, compute_dtype: as for :class:`SentenceEncoder`; kept for queries.
            overwrite: replace an index that is there.
            options: as for :meth:`add`.

        Raises:
            FileExistsError: the folder exists.
            ValueError: an unknown option, or embeddings of another shape or model.
            ImportError: usearch is missing.
        """
        import_usearch()
        source = ready_folder(model)
        encoder = _load(source, compute_dtype, max_length)
        metric = metric or encoder.similarity_fn_name
        for name, value, known in (("metric", metric, METRICS), ("dtype", dtype, DTYPES)):
            if value not in known:
                raise ValueError(f"[search] expected {name} to be one of {', '.join(known)} but got {value!r}.")
        if dtype in SCALED and metric != "cosine":
            raise ValueError(
                f"[search] expected dtype f32 or f16 for metric {metric} but got {dtype!r}: it has no lengths."
            )
        width = encoder.get_embedding_dimension()
        width = min(width, truncate_dim or width)
        row_dtype(vectors, width)
        prompts = {"query": query_prompt, "document": document_prompt}
        settings = {
            "format": FORMAT,
            "model": str(source.resolve() if Path(model).expanduser().is_dir() else model),
            "fingerprint": fingerprint(source),
            "dimension": width,
            "metric": metric,
            "dtype": dtype,
            "vectors": vectors,
            "prompts": {name: encoder.prompts[name] if given is None else given for name, given in prompts.items()},
            "encoder": {"dtype": compute_dtype, "max_length": max_length, "truncate_dim": truncate_dim},
            "count": 0,
            "documents_bytes": 0,
            "graph": None,
            "graph_bytes": 0,
        }
        with new_folder(folder, overwrite) as partial:
            for name in (DOCUMENTS, OFFSETS, VECTORS):
                (partial / name).touch()
            write_json(partial / INDEX, settings)
            index = cls(partial)
            index._encoder = encoder
            index.add(documents, embeddings, **options)
            del index
        result = cls(folder)
        result._model, result._encoder = model, encoder
        return result

    @classmethod
    def load(cls, folder: str | Path, model: str | Path | None = None) -> Self:
        """Open an index.

        Args:
            folder: where it lies.
            model: where its model lies now; None for where it was. It is loaded for the first text.

        Raises:
            FileNotFoundError: no index there.
            ValueError: another format, or the model is not the one that the index was built with.
        """
        return cls(folder, model)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a copy.

        Raises:
            FileExistsError: the folder exists.
        """
        import shutil

        with new_folder(folder, overwrite) as partial:
            for name, size in self._sizes().items():
                shutil.copyfile(self.folder / name, partial / name)
                os.truncate(partial / name, size)
            if self.settings["graph"]:
                shutil.copyfile(self.folder / self.settings["graph"], partial / self.settings["graph"])
            write_json(partial / INDEX, self.settings)

    def add(
        self,
        documents: Documents,
        embeddings: np.ndarray | None = None,
        batch_size: int = 32,
        window: int = WINDOW,
        on_documents: Callable[[int], Any] = lambda _: None,
    ) -> int:
        """Embed more documents and keep them. All are in, or, after an error or a kill, none.

        Args:
            documents: as for :meth:`build`.
            embeddings: as for :meth:`build`.
            batch_size: as for :meth:`SentenceEncoder.encode`.
            window: documents read, embedded and written at a time.
            on_documents: called with the number of documents that were just embedded.

        Returns:
            The number of documents added.

        Raises:
            ValueError: an id that is there already, embeddings of another shape or model, or the index was changed by
                another process since it was loaded.
            OSError: another process is adding to it.
        """
        if embeddings is not None and (embeddings.ndim != 2 or embeddings.shape[1] != self.settings["dimension"]):
            raise ValueError(
                f"[search] expected embeddings (N, {self.settings['dimension']}) but got {embeddings.shape}. "
                "Were they made by the same model, with the same truncate_dim?"
            )
        with self._alone():
            graph = self._open_graph(to_add=True)
            start = count = len(self)
            known = {str(document["id"]) for document in self._documents(range(start))}
            source = iter(documents)
            with self._appending() as (lines, offsets, vectors):
                while part := list(islice(source, window)):
                    records = [Record(each) if isinstance(each, str) else each for each in part]
                    result = self._embedded(records, embeddings, count - start, batch_size)
                    for place, record in enumerate(records, count):
                        name = place if record.id is None else record.id
                        if str(name) in known:
                            raise ValueError(f"[search] document id {name!r} comes twice. Give each document its own.")
                        known.add(str(name))
                        offsets.write(np.uint64(lines.tell()).tobytes())
                        lines.write(json.dumps({"id": name, "text": record.text}, ensure_ascii=False).encode() + b"\n")
                    vectors.write(row_bytes(result, self.settings["vectors"]))
                    graph.add(np.arange(count, count + len(records)), self._coded(result))
                    count += len(records)
                    on_documents(len(records))
                if embeddings is not None and count - start != len(embeddings):
                    raise ValueError(f"[search] expected {len(embeddings)} documents but got {count - start}.")
                size = lines.tell()
            self._commit(graph, count, size)
        return count - start

    def _embedded(
        self, records: list[Record], embeddings: np.ndarray | None, place: int, batch_size: int
    ) -> np.ndarray:
        texts = [record.text for record in records]
        if embeddings is None:
            return self._encode(texts, "document", batch_size)
        given = np.asarray(embeddings[place : place + len(records)], np.float32)
        if len(given) < len(records):
            raise ValueError(f"[search] expected {len(embeddings)} documents, one for each embedding, but got more.")
        if place == 0:
            own = self._encode(texts[:1], "document")[0]
            cosine = own @ given[0] / max(1e-12, np.linalg.norm(own) * np.linalg.norm(given[0]))
            if cosine < 0.98:
                raise ValueError(
                    f"[search] the first embedding is not the model's for the first document (cosine {cosine:.3f}). "
                    "Make them with the same model and the document prompt, in the same order."
                )
        return given

    # --- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: str | Sequence[str] | np.ndarray,
        top_k: int = 10,
        exact: bool = False,
        rescore_multiplier: int = 4,
    ) -> Any:
        """The documents nearest to queries.

        Args:
            queries: texts, before which the query prompt goes, or embeddings ``(Q, D)``; one text or ``(D,)`` for one.
            top_k: K.
            exact: compare with every document instead of asking the graph.
            rescore_multiplier: the graph is asked for ``C = top_k * rescore_multiplier`` candidates, and the best K by
                the stored embeddings are taken.

        Returns:
            For each query up to K of ``{"id", "text", "score"}``, best first; one such list for one query. The score
            is the metric's (a distance with a minus).

        Raises:
            ValueError: sizes below 1, embeddings of another width, or another model than the index was built with.
            ImportError: usearch is missing; ``exact`` does without.
        """
        for name, value in (("top_k", top_k), ("rescore_multiplier", rescore_multiplier)):
            if value < 1:
                raise ValueError(f"[search] expected {name} of at least 1 but got {value}.")
        is_array = isinstance(queries, np.ndarray)
        single = queries.ndim == 1 if is_array else isinstance(queries, str)
        given = [queries] if single else queries
        vectors = np.asarray(given, np.float32) if is_array else self._encode(list(given), "query")
        if len(vectors) and vectors.shape[1] != self.settings["dimension"]:
            raise ValueError(
                f"[search] expected queries of {self.settings['dimension']} values but got {vectors.shape[1]}. "
                "Is it the model that the index was built with?"
            )
        results = self._search(vectors, top_k, exact, rescore_multiplier) if len(self) else [[] for _ in vectors]
        return results[0] if single else results

    def _search(self, vectors: np.ndarray, top_k: int, exact: bool, multiplier: int) -> list[list[dict[str, Any]]]:
        metric = self.settings["metric"]
        if exact or top_k * multiplier >= len(self):  # a graph may not reach its last few documents
            places, scores = nearest(vectors, self._vectors, top_k, metric)
        else:
            self._graph = self._graph or self._open_graph()
            candidates = self._candidates(vectors, top_k * multiplier)
            places, scores = rescored(vectors, candidates, self._vectors.__getitem__, top_k, metric)
        return [
            [
                {**document, "score": score}
                for document, score in zip(self._documents(row), values, strict=True)
                if score > -np.inf
            ]
            for row, values in zip(places.tolist(), scores.tolist(), strict=True)
        ]

    def _candidates(self, vectors: np.ndarray, count: int) -> np.ndarray:
        """Places ``(Q, C)``; -1 where the graph finds fewer."""
        if not len(vectors):
            return np.zeros((0, count), np.int64)
        self._graph.expansion_search = max(64, 2 * count)
        matches = self._graph.search(self._coded(vectors), count)
        keys = np.atleast_2d(matches.keys)
        counts = np.reshape(getattr(matches, "counts", keys.shape[1]), (-1, 1))
        return np.where(np.arange(keys.shape[1]) < counts, keys, -1).astype(np.int64)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _model_folder(self) -> Path:
        """The model's folder, if it is the model that the index was built with."""
        source = ready_folder(self._model or self.settings["model"])
        if fingerprint(source) != self.settings["fingerprint"]:
            raise ValueError(
                f"[search] {self.folder} was built with another model than {source} is now. "
                "Give the model it was built with, or build it again."
            )
        return source

    def _encode(self, texts: list[str], prompt: str, batch_size: int = 32) -> np.ndarray:
        options = self.settings["encoder"]
        if self._encoder is None:
            self._encoder = _load(self._model_folder(), options["dtype"], options["max_length"])
        return self._encoder.encode(
            texts,
            batch_size,
            prompt=self.settings["prompts"][prompt],
            truncate_dim=options["truncate_dim"],
            show_progress_bar=False,
        )

    def _coded(self, vectors: np.ndarray) -> np.ndarray:
        return quantize_embeddings(vectors, "ubinary") if self.settings["dtype"] == "binary" else vectors

    def _open_graph(self, to_add: bool = False) -> Any:
        index_type = import_usearch()
        if self.settings["graph"]:
            path = self.folder / self.settings["graph"]
            if not path.is_file() or path.stat().st_size != self.settings["graph_bytes"]:
                raise ValueError(f"[search] {path} is missing or damaged. Build the index again.")
            try:
                graph = index_type.restore(str(path), view=not to_add)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"[search] {path} cannot be read ({error}). Build the index again.") from None
            return graph
        width, dtype = self.settings["dimension"], DTYPES[self.settings["dtype"]]
        if dtype == "b1":
            return index_type(ndim=-(-width // 8) * 8, metric="hamming", dtype=dtype)
        return index_type(ndim=width, metric=METRICS[self.settings["metric"]], dtype=dtype)

    def _documents(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        with (self.folder / DOCUMENTS).open("rb") as lines:
            for place in places:
                lines.seek(int(self._offsets[place]))
                yield json.loads(lines.readline())

    def _sizes(self) -> dict[str, int]:
        """How many bytes of each growing file count."""
        row = row_dtype(self.settings["vectors"], self.settings["dimension"]).itemsize
        return {DOCUMENTS: self.settings["documents_bytes"], OFFSETS: 8 * len(self), VECTORS: row * len(self)}

    def _map(self) -> None:
        for name, size in self._sizes().items():
            if not (self.folder / name).is_file() or (self.folder / name).stat().st_size < size:
                raise ValueError(f"[search] {self.folder / name} is missing or cut off. Build the index again.")
        count = len(self)
        self._offsets = np.memmap(self.folder / OFFSETS, "<u8", "r", shape=(count,)) if count else np.zeros(0, "<u8")
        self._vectors = StoredVectors(
            self.folder / VECTORS, self.settings["vectors"], count, self.settings["dimension"]
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process adds, and if none has since this one looked."""
        import fcntl

        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"[search] another process is adding to {self.folder}. Wait for it.") from None
            if read_json(self.folder / INDEX) != self.settings:
                raise ValueError(f"[search] {self.folder} was changed since it was loaded. Load it again.")
            yield

    @contextmanager
    def _appending(self) -> Iterator[list[Any]]:
        """The growing files, cut to what counts; on disk at the end."""
        files = []
        try:
            for name, size in self._sizes().items():
                os.truncate(self.folder / name, size)  # what an interrupted addition has left
                files.append((self.folder / name).open("ab"))
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files:
                file.close()

    def _commit(self, graph: Any, count: int, documents_bytes: int) -> None:
        name, before = f"graph-{count}.usearch", self.settings["graph"]
        graph.save(str(self.folder / ".graph"))
        with (self.folder / ".graph").open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.folder / ".graph", self.folder / name)
        settings = {
            **self.settings,
            "count": count,
            "documents_bytes": documents_bytes,
            "graph": name,
            "graph_bytes": (self.folder / name).stat().st_size,
        }
        write_json(self.folder / INDEX, settings)
        self.settings, self._graph = settings, None
        self._map()
        if before and before != name:
            (self.folder / before).unlink()


def import_usearch() -> Any:
    """``usearch.index.Index``.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError:
        raise ImportError('[search] the index needs usearch. Install it: pip install "mlx-bert[search]"') from None
    return Index


def _load(source: Path, dtype: str | None, max_length: int | None) -> SentenceEncoder:
    settings = {} if max_length is None else {"max_seq_length": max_length}
    return SentenceEncoder.from_pretrained(source, dtype=dtype, **settings)
