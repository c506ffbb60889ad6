"""The words of an exchange: nothing in them can change, and no two of them are equal by accident."""

from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest

from app.protocol import exchange_model as model
from app.protocol.exchange_model import WINDOW_DEFAULT, WINDOW_MAX, Effect, Event, Exchange, Open


@pytest.mark.parametrize("word", [*get_args(Exchange), *get_args(Event), *get_args(Effect)], ids=lambda w: w.__name__)
def test_words_are_frozen(word: type) -> None:
    made = word(*(0 for _ in fields(word)))
    with pytest.raises((FrozenInstanceError, TypeError)):
        made.anything = 1
    assert made == word(*(0 for _ in fields(word)))


def test_a_new_exchange_has_nothing_in_it() -> None:
    new = Open("laptop", 5)
    assert (new.submitted, new.answered, new.acknowledged, new.window) == (0, 0, 0, WINDOW_DEFAULT)
    assert new.client_restart == new.server_restart == model.NOTHING
    assert WINDOW_DEFAULT <= WINDOW_MAX
