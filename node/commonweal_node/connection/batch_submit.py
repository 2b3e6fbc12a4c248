"""Many envelopes over one call, and over the next one where that breaks: each gets one answer, in order.

What was sent and not answered when a call broke is first asked for by its token, the entry's leaf hash: what has its
place is not sent again. From the first entry on that nothing is known of, all is sent again, since an author's entries
follow one another; whatever had its place all the same keeps it. No pauses and no clock here: ``client`` decides when
to call again. What the coordinator answers is taken apart and not verified.
"""

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import grpc

from commonweal_protocols.base.errors import MalformedError, PeerError, UnavailableError
from commonweal_protocols.tlog.merkle import HASH_BYTES, MAX_PATH, leaf_hash
from commonweal_protocols.tlog.proof import format_proof
from commonweal_protocols.wire import commonweal_pb2 as pb

MAX_ITEMS = 256
MAX_REQUEST_BYTES = 1 << 20
_MAX_UNANSWERED = 8
"""Requests on their way: enough to keep the coordinator busy, and few enough to be asked for again."""

Batch = tuple[bytes, ...]
Answer = bytes | PeerError
"""An entry's tlog-proof, or the coordinator's refusal as it says itself."""
Call = Callable[[Iterator[pb.SubmitManyRequest]], grpc.Call]


def batches(envelopes: Iterable[bytes]) -> Iterator[Batch]:
    """Yield the envelopes in requests' worth of at most 256 and 1 MiB."""
    batch: list[bytes] = []
    for data in envelopes:
        if batch and (len(batch) == MAX_ITEMS or sum(map(len, batch)) + len(data) > MAX_REQUEST_BYTES):
            yield tuple(batch)
            batch = []
        batch.append(data)
    if batch:
        yield tuple(batch)


class Submissions:
    """One run of many envelopes. ``answered`` only grows: by it a caller sees whether calls are in vain.

    Args:
        envelopes: What to send; taken as it is needed.
        refused: Makes the error of what the coordinator says of an entry.
    """

    def __init__(self, envelopes: Iterable[bytes], refused: Callable[[str], PeerError]) -> None:
        self._batches = batches(envelopes)
        self._refused = refused
        self._unanswered: deque[Batch] = deque()
        self.answered = 0

    def over(self, call: Call) -> Iterator[Answer]:
        """Yield the answers that are still wanted, over one new call.

        Raises:
            grpc.RpcError: The call broke; go on over another.
            MalformedError: The coordinator's answer is not of the form.
            UnavailableError: It ended the call too early.
        """
        requests: queue.SimpleQueue[pb.SubmitManyRequest | None] = queue.SimpleQueue()
        replies = call(iter(requests.get, None))
        try:
            yield from self._ask(requests, replies)
            while self._fill(requests):
                answers = self._read(replies, self._unanswered[0])
                if None in answers:
                    raise MalformedError("submit many: wanted a place or a refusal for an envelope, got 'unknown'")
                yield from self._settle(answers)
        finally:
            requests.put(None)
            replies.cancel()

    def _ask(self, requests: "queue.SimpleQueue[pb.SubmitManyRequest | None]", replies: grpc.Call) -> Iterator[Answer]:
        """Ask for what an earlier call has left open, and send again from where nothing is known on."""
        asked = list(self._unanswered)
        for batch in asked:
            requests.put(pb.SubmitManyRequest(items=[pb.SubmitItem(token=leaf_hash(data)) for data in batch]))
        answered = [self._read(replies, batch) for batch in asked]
        for answers in answered:
            if None in answers:
                break
            yield from self._settle(answers)
        for batch in self._unanswered:
            requests.put(_request(batch))

    def _fill(self, requests: "queue.SimpleQueue[pb.SubmitManyRequest | None]") -> bool:
        """Send as much as may be on its way; False once all is answered."""
        while len(self._unanswered) < _MAX_UNANSWERED and (batch := next(self._batches, None)) is not None:
            self._unanswered.append(batch)
            requests.put(_request(batch))
        return bool(self._unanswered)

    def _settle(self, answers: list[Answer | None]) -> Iterator[Answer]:
        self._unanswered.popleft()
        self.answered += len(answers)
        yield from (a for a in answers if a is not None)

    def _read(self, replies: grpc.Call, batch: Batch) -> list[Answer | None]:
        """Return the next reply's answers; None for what is not known there."""
        if (reply := next(replies, None)) is None:
            raise UnavailableError("submit many: wanted an answer to each request, got the end")
        if len(reply.answers) != len(batch):
            raise MalformedError(f"submit many: wanted {len(batch)} answers, got {len(reply.answers)}")
        return [self._answer(a, reply.checkpoint) for a in reply.answers]

    def _answer(self, answer: pb.SubmitAnswer, checkpoint: bytes) -> Answer | None:
        match answer.WhichOneof("answer"):
            case "place":
                path = answer.place.path
                if len(path) % HASH_BYTES or len(path) > MAX_PATH * HASH_BYTES:
                    raise MalformedError(
                        f"submit many: wanted a path of up to {MAX_PATH} hashes, got {len(path)} bytes"
                    )
                hashes = [path[at : at + HASH_BYTES] for at in range(0, len(path), HASH_BYTES)]
                return format_proof(answer.place.index, hashes, checkpoint)
            case "refusal":
                return self._refused(answer.refusal)
            case "unknown":
                return None
        raise MalformedError("submit many: wanted a place, a refusal or 'unknown', got nothing")


def _request(batch: Batch) -> pb.SubmitManyRequest:
    return pb.SubmitManyRequest(items=[pb.SubmitItem(envelope=data) for data in batch])
