"""What comes next in a run, and the learning rate of each of its epochs."""

import pytest

from idgenrec_jax.config import Config
from idgenrec_jax.training.phases import (
    CAUSAL,
    ID,
    RECOMMENDER,
    WARM_START,
    Phase,
    epochs_before,
    id_temperature,
    learning_rate,
    phases,
)

CONFIG = Config().override(
    {
        "data.history": "whole",
        "training.rounds": 2,
        "training.order": "id_first",
        "training.warm_start_epochs": 4,
        "training.id_epochs": 1,
        "training.recommender_epochs": 2,
        "training.recommender_learning_rate": 0.5,
        "training.warmup_fraction": 0.25,
    }
)
PHASES = (
    Phase(WARM_START, 0, 4), Phase(ID, 1, 1), Phase(RECOMMENDER, 1, 2), Phase(ID, 2, 1), Phase(RECOMMENDER, 2, 2),
)  # fmt: skip


def test_phases_follow_the_configured_order():
    assert phases(CONFIG, pretrained_id_generator=False) == PHASES
    other = phases(CONFIG.override({"training.order": "recommender_first"}), pretrained_id_generator=False)
    assert [phase.kind for phase in other] == [WARM_START, RECOMMENDER, ID, RECOMMENDER, ID]


@pytest.mark.parametrize("pretrained", [False, True])
def test_without_id_phases_given_ids_need_no_warm_start_and_a_pretrained_id_generator_never_does(pretrained):
    given = CONFIG.override({"training.id_epochs": 0, "ids.table": "ids.txt"})
    assert [phase.epochs for phase in phases(given, pretrained_id_generator=pretrained)] == [0, 2, 2]
    first, *_ = phases(CONFIG, pretrained_id_generator=pretrained)
    assert first == Phase(WARM_START, 0, 0 if pretrained else 4)


def test_whole_epochs_follow_the_causal_ones_of_a_phase_and_are_those_that_are_validated():
    config = CONFIG.override({"data.history": "causal"})
    assert {phase.is_causal for phase in phases(config, pretrained_id_generator=False)[2::2]} == {True}
    found = phases(config.override({"training.whole_epochs": 3}), pretrained_id_generator=False)
    causal = [Phase(RECOMMENDER, number, 2, is_causal=True, is_validated=False) for number in (1, 2)]
    whole = [Phase(RECOMMENDER, number, 3) for number in (1, 2)]
    assert found == (PHASES[0], PHASES[1], causal[0], whole[0], PHASES[3], causal[1], whole[1])
    assert [phase.epoch_kind for phase in found[2:4]] == [CAUSAL, RECOMMENDER]
    # All of them are one kind: one schedule, and every epoch with a number of its own.
    assert [epochs_before(found, number) for number in (2, 3, 5, 6)] == [0, 2, 5, 7]
    assert learning_rate(config.training, found, 6, 3.0) == 0.0


def test_the_epochs_before_a_phase_are_those_of_its_kind():
    assert [epochs_before(PHASES, number) for number in range(5)] == [0, 0, 0, 1, 2]


def test_the_learning_rate_has_one_schedule_over_all_phases_of_a_kind():
    """Four epochs of the recommender: one of warm-up, three down to zero."""
    training = CONFIG.training
    rates = [learning_rate(training, PHASES, 2, epochs) for epochs in (0.5, 1.0, 2.0)]
    assert rates == pytest.approx([0.25, 0.5, 0.5 * 2 / 3])
    rates = [learning_rate(training, PHASES, 4, epochs) for epochs in (0.0, 1.0, 2.0)]
    assert rates == pytest.approx([0.5 * 2 / 3, 0.5 / 3, 0.0])


def test_final_epochs_follow_the_last_round_in_one_schedule_with_the_others():
    config = CONFIG.override({"training.order": "recommender_first", "training.final_recommender_epochs": 5})
    found = phases(config, pretrained_id_generator=False)
    assert found[-2:] == (Phase(ID, 2, 1), Phase(RECOMMENDER, 3, 5))
    assert [epochs_before(found, number) for number in (1, 3, 5)] == [0, 2, 4]
    assert learning_rate(config.training, found, 5, 5.0) == 0.0
    whole = config.override({"data.history": "causal", "training.whole_epochs": 3})
    last = phases(whole, pretrained_id_generator=False)[-2:]
    assert last == (Phase(RECOMMENDER, 3, 5, is_causal=True, is_validated=False), Phase(RECOMMENDER, 3, 3))


def test_the_temperature_falls_evenly_in_its_logarithm_over_all_id_phases():
    config = CONFIG.override({"training.id_temperature": 0.01})
    found = phases(config, pretrained_id_generator=False)
    falling = [id_temperature(config.training, found, 1, 0.0), id_temperature(config.training, found, 1, 1.0)]
    falling += [id_temperature(config.training, found, 3, 0.0), id_temperature(config.training, found, 3, 1.0)]
    assert falling == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert id_temperature(CONFIG.training, found, 3, 0.7) == 1.0
