"""The model process: ``python -m commonweal_node.training.model_main PARENT``; it ends when its input does.

PARENT is the daemon's process ID. Requests come on stdin and replies go to stdout (``model_messages``); whatever else
is printed goes to stderr, the daemon's log.
"""

import os
import signal
import sys
import threading
from typing import BinaryIO, cast

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.model.row_losses import RowLosses
from commonweal_node.training.child import die_with
from commonweal_node.training.jobs import ending
from commonweal_node.training.learner import Learner
from commonweal_node.training.model_messages import (
    REQUESTS,
    AskProbe,
    Attack,
    Begin,
    Doing,
    Done,
    Export,
    Failed,
    Figure,
    Frame,
    Loaded,
    Measure,
    Reply,
    Tensors,
    Train,
    read_frame,
    write_frame,
)
from commonweal_node.training.team import Team, join_team
from commonweal_protocols.base.errors import CommonwealError
from commonweal_protocols.base.logs import log_to_stderr

_Answer = tuple[Reply, *tuple[Tensors, ...]]


class _Pipe:
    """The way back to the daemon; a ``Board`` too."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def set(self, **fields: object) -> None:
        self.say(Doing.model_validate({"fields": fields}))

    def say(self, reply: Reply, *sets: Tensors) -> None:
        write_frame(self._out, reply, *sets)


def _answer(learner: Learner, frame: Frame) -> _Answer:
    request, sets = REQUESTS.validate_json(frame.text), [GridTensors(x) for x in frame.tensors]
    if isinstance(request, Train):
        return Done(), learner.train(sets[0], request.recipe, request.what, request.frozen)
    if isinstance(request, Attack):
        return (Figure(micros=learner.membership(sets[0])),)
    shared, own = sets
    if isinstance(request, Measure):
        measure = learner.choosing if request.half == "tune" else learner.reported
        return Done(), _tensors(measure(shared, own, request.blend, request.what))
    if isinstance(request, AskProbe):
        return (Figure(micros=learner.probe(request.probe, shared, own, request.blend, request.what)),)
    learner.export(shared, own, cast(Export, request).blend, cast(Export, request).directory)
    return (Done(),)


def _tensors(losses: RowLosses) -> Tensors:
    return {"nats": losses.nats, "tokens": losses.tokens}


def _serve(source: BinaryIO, pipe: _Pipe, team: Team, stopping: threading.Event) -> None:
    first = read_frame(source)
    if first is None:
        return
    begin = cast(Begin, REQUESTS.validate_json(first.text))
    learner = Learner(begin.compact, begin.config, begin.weights, begin.home, pipe, stopping, team)
    pipe.say(Loaded(num_examples=learner.num_examples, manifest=learner.manifest))
    while (frame := read_frame(source)) is not None:
        try:
            answer = _answer(learner, frame)
        except CommonwealError as e:
            # Of a team that is broken nothing more can be had.
            team.check()
            answer = (_failed(e),)
        pipe.say(*answer)


def _failed(error: CommonwealError) -> Failed:
    return Failed(error=type(error).__name__, message=str(error))


def main() -> None:
    """Answer what the daemon asks, one after the other, until it closes the way."""
    die_with(int(sys.argv[1]))
    log_to_stderr()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    # A Ctrl-C reaches all processes of a terminal: the daemon decides what becomes of the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = _Pipe(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    try:
        team = join_team()
        with ending(team):
            _serve(sys.stdin.buffer, pipe, team, stopping)
    except CommonwealError as e:
        pipe.say(_failed(e))
    except BrokenPipeError:
        sys.exit("the daemon has ended")


if __name__ == "__main__":
    main()
