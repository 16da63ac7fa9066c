"""What browser and server say to each other, as pydantic models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ['JoinIn', 'JoinOut', 'Problem', 'ProgressOut', 'RaterProgress', 'StateOut', 'StudyOut', 'TrialOut', 'VoteIn']

Side = Literal['a', 'b']


class _Strict(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True)


class JoinIn(_Strict):
    """`key`: made up by the browser and sent again until it is answered."""

    key: str = Field(pattern='^[A-Za-z0-9_-]{16,64}$')


class JoinOut(_Strict):
    """`rater`: the token of the rater's own link."""

    rater: str


class Question(_Strict):
    """One of the two questions."""

    name: str
    text: str


class StudyOut(_Strict):
    """What someone is told before taking part."""

    title: str
    consent: str
    trials: int
    minutes: int


class TrialOut(_Strict):
    """A trial: addresses of its pictures, and the size of the results in pixels."""

    token: str
    practice: bool
    width: int
    height: int
    lq: str
    a: str
    b: str


class StateOut(_Strict):
    """Where a rater stands, and the next trials."""

    title: str
    questions: list[Question]
    min_seconds: float
    done: int
    total: int
    trials: list[TrialOut]


class VoteIn(_Strict):
    """The answers to a trial."""

    fidelity: Side
    realism: Side
    seconds: float = Field(ge=0, le=86400, allow_inf_nan=False)
    zoom: float = Field(ge=0, le=1000, allow_inf_nan=False)
    flips: int = Field(ge=0, le=100000)


class RaterProgress(_Strict):
    """How far a rater is."""

    rater: int
    answered: int
    total: int


class ProgressOut(_Strict):
    """How far the study is."""

    votes: int
    raters: list[RaterProgress]


class Problem(_Strict):
    """Why a request was refused."""

    detail: str
