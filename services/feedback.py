"""Takes feedback about an answer: checks it, and records it durably and once.

A gateway knows only its own recent answers. Feedback for another id is taken too and marked ``known: false``,
since another gateway may have answered, or this one may have been restarted. Unknown for certain, and refused,
is an id that was made for another use case, for fewer texts, or in the future.
"""

import time
from collections.abc import Sequence

from leitstand.errors import ConflictError, NotFoundError
from leitstand.ports import FeedbackLog
from leitstand.types import Feedback, utc_now
from services.errors import HttpError
from services.gateway_metrics import FEEDBACK, JUDGED
from services.recent import RecentAnswer, RecentRequests
from services.request_ids import made_at, new_request_id
from services.schemas import FeedbackRequest, FeedbackResponse

__all__ = ["take_feedback"]

CLOCK_SKEW_S = 60.0


def take_feedback(
    log: FeedbackLog, recent: RecentRequests, use_case: str, said: FeedbackRequest, labels: Sequence[str],
    *, takes_new: bool = False,
) -> FeedbackResponse:  # fmt: skip
    """Records what was said about one answer of `use_case`; returns when it is durable.

    Args:
        log: Where it is kept.
        recent: What this gateway answered lately.
        use_case: Name of a use case with routes.
        said: The request's body.
        labels: The model's labels; empty when it does not tell, and then any label is taken.
        takes_new: Whether other labels are taken, too; they wait for the policy of retraining.

    Raises:
        NotFoundError: The request id cannot have been given to an answer of this use case.
        ConflictError: The feedback id was used before for something else.
        HttpError: 422, the label is none of `labels` and new ones are not taken, or the request had fewer texts.
    """
    answer = _check_id(recent, use_case, said)
    known = answer is not None
    new_label = said.label is not None and bool(labels) and said.label not in labels
    if new_label and not takes_new:
        raise HttpError(
            422,
            f"label '{said.label}' is none of the {len(labels)} labels of '{use_case}'; "
            "its `feedback.new_labels` decides whether others are taken",
        )
    feedback = Feedback(
        feedback_id=said.feedback_id or new_request_id(), request_id=said.request_id, index=said.index,
        use_case=use_case, label=said.label, rating=said.rating, source=said.source, at=said.at or utc_now(),
    )  # fmt: skip
    try:
        recorded = log.record(feedback)
    except ConflictError:
        earlier = _earlier(log, feedback)
        if said.at is not None or earlier is None:
            FEEDBACK.labels(use_case, "conflict").inc()
            raise
        feedback, recorded = earlier, False
    if recorded and answer is not None:
        _count(answer, feedback)
    FEEDBACK.labels(use_case, ("recorded" if known else "unmatched") if recorded else "repeated").inc()
    return FeedbackResponse(
        feedback_id=feedback.feedback_id, recorded=recorded, known=known, new_label=new_label,
        at=feedback.at,
    )  # fmt: skip


def _check_id(recent: RecentRequests, use_case: str, said: FeedbackRequest) -> RecentAnswer | None:
    found = recent.find(said.request_id)
    if found is not None:
        if found.use_case != use_case:
            raise NotFoundError(f"Request '{said.request_id}' was not one of '{use_case}', but of '{found.use_case}'")
        if found.texts and said.index >= found.texts:
            raise HttpError(422, f"index {said.index}: the request had {found.texts} texts, the first is 0")
        return found
    made = made_at(said.request_id)
    if made is not None and made > time.time() + CLOCK_SKEW_S:
        raise NotFoundError(f"Request '{said.request_id}' has an id of the future; no answer has it")
    return None


def _count(answer: RecentAnswer, feedback: Feedback) -> None:
    """Counts the first word about a text as right or wrong: what a rollout compares versions by.

    A correction later counts in training and in measured quality, not here: a counter cannot take anything back.
    """
    if feedback.label is not None and answer.labels:
        right = feedback.label == answer.labels[feedback.index]
    elif feedback.rating:
        right = feedback.rating > 0
    else:
        return
    if feedback.index not in answer.judged:
        answer.judged |= {feedback.index}
        JUDGED.labels(answer.use_case, str(answer.version), answer.route, "right" if right else "wrong").inc()


def _earlier(log: FeedbackLog, feedback: Feedback) -> Feedback | None:
    """The same word, said before at another time: a repetition by a caller who gives no time. Reads the whole log."""
    same = (entry for entry in log.entries(feedback.use_case) if entry.feedback_id == feedback.feedback_id)
    earlier = next(same, None)
    if earlier is not None and earlier.model_copy(update={"at": feedback.at}) == feedback:
        return earlier
    return None
