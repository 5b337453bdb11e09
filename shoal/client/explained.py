"""Why documents matched: frozen values without behaviour of their own."""

from dataclasses import dataclass, field

from shoal.client.model import Hit, Payload, Span
from shoal.types import Coverage


@dataclass(frozen=True, slots=True)
class Token:
    """A token and where it stands.

    Attributes:
        token: as the vocabulary has it: "vitamin", "##s", "[CLS]"; empty where it is not
            known.
        origin: "text", "title" or "added" (by the encoder); empty where it is not known.
        span: its characters there.
    """

    token: str
    origin: str
    span: Span


@dataclass(frozen=True, slots=True)
class Match:
    """A token of the question and the token of the passage that is nearest to it.

    Attributes:
        document_token: the passage's token, from 0.
        token: which one it is; None where the document brought its vectors.
        similarity: its share of the score; those of a document add up to it exactly.
        exact_similarity: before the document's token was quantised; None where the document
            brought its vectors.
    """

    document_token: int
    token: Token | None
    similarity: float
    exact_similarity: float | None

    @property
    def error(self) -> float | None:
        """What quantising changed; None where it is not known."""
        return None if self.exact_similarity is None else self.similarity - self.exact_similarity


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one document has its score.

    Attributes:
        id: of the document.
        outcome: "hit", "dropped_by_centroids", "dropped_by_score" or "not_found".
        score: of its best passage.
        rank: among the hits, from 1; 0 if it is none.
        score_cut: score of the last hit; 0.0 where there are fewer than asked for.
        centroid_score: by centroids alone; 0.0 in an exhaustive search.
        centroid_cut: of the last document whose codes were looked at; 0.0 in an exhaustive
            search.
        passage: the best passage, from 0.
        chunk: its characters in the text; None for a user's own vectors.
        title: empty unless asked for.
        text: empty unless asked for.
        payload: empty unless asked for.
        matches: per token of the question.
    """

    id: str
    outcome: str
    score: float = 0.0
    rank: int = 0
    score_cut: float = 0.0
    centroid_score: float = 0.0
    centroid_cut: float = 0.0
    passage: int = 0
    chunk: Span | None = None
    title: str = ""
    text: str = ""
    payload: Payload = field(default_factory=dict)
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplainedAnswer:
    """Why documents match a question, or do not.

    Attributes:
        tokens: of the question; empty for one in vectors.
        explanations: in the order asked; else best first.
        coverage: behind the ranks and cuts.
        fingerprint: of the collection's encoder; empty without one.
        generation: the generation that answered.
        truncated: the question was cut at the encoder's length.
        request_id: finds the request in the servers' logs.
    """

    tokens: tuple[Token, ...]
    explanations: tuple[Explanation, ...]
    coverage: Coverage
    fingerprint: str = ""
    generation: int = 0
    truncated: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Reranked:
    """Given documents by score.

    Attributes:
        hits: best first.
        not_found: ids of those that are not stored, or have no token.
        fingerprint: of the collection's encoder; empty without one.
        generation: the generation that answered.
        truncated: the question was cut at the encoder's length.
        request_id: finds the request in the servers' logs.
    """

    hits: tuple[Hit, ...]
    not_found: tuple[str, ...] = ()
    fingerprint: str = ""
    generation: int = 0
    truncated: bool = False
    request_id: str = ""
