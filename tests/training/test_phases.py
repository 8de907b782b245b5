"""What comes next in a run, and the learning rate of each of its epochs."""

import pytest

from idgenrec_jax.config import Config
from idgenrec_jax.training.phases import ID, RECOMMENDER, WARM_START, Phase, epochs_before, learning_rate, phases

CONFIG = Config().override(
    {
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


def test_the_epochs_before_a_phase_are_those_of_its_kind():
    assert [epochs_before(PHASES, number) for number in range(5)] == [0, 0, 0, 1, 2]


def test_the_learning_rate_has_one_schedule_over_all_phases_of_a_kind():
    """Four epochs of the recommender: one of warm-up, three down to zero."""
    training = CONFIG.training
    rates = [learning_rate(training, PHASES, 2, epochs) for epochs in (0.5, 1.0, 2.0)]
    assert rates == pytest.approx([0.25, 0.5, 0.5 * 2 / 3])
    rates = [learning_rate(training, PHASES, 4, epochs) for epochs in (0.0, 1.0, 2.0)]
    assert rates == pytest.approx([0.5 * 2 / 3, 0.5 / 3, 0.0])
