"""The rule by which an epoch is kept, against a reading of it of its own."""

from hypothesis import given
from hypothesis import strategies as st

from graphmod.methods.seam.choice import ByAccuracy, ByShare, Epoch

HISTORIES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=25)


def seen(history, accuracy, patience=None):
    """Return the choice among epochs of (accuracy in fourths, share in ten-thousandths), and those that were seen."""
    choice = ByAccuracy(accuracy)
    epochs = [Epoch(i, right / 4, share / 10000, 0.0, 0.0) for i, (right, share) in enumerate(history)]
    for epoch in epochs:
        choice.see(epoch, epoch.epoch)
        if choice.waited == patience:
            return choice, epochs[: epoch.epoch + 1]
    return choice, epochs


@given(history=HISTORIES)
def test_of_accurate_epochs_the_smallest_is_kept(history):
    choice, epochs = seen(history, 0.5)
    kept, state = choice.chosen
    assert state == kept.epoch
    accurate = [epoch for epoch in epochs if epoch.accuracy >= 0.5]
    assert choice.reached == bool(accurate)
    if not accurate:
        best = max(epoch.accuracy - epoch.kept for epoch in epochs)
        assert kept == next(epoch for epoch in epochs if epoch.accuracy - epoch.kept == best)
        return
    least = min(int(1000 * epoch.kept) for epoch in accurate)
    alike = [epoch for epoch in accurate if int(1000 * epoch.kept) == least]
    assert kept in alike
    later = [epoch for epoch in alike if epoch.epoch > kept.epoch]
    assert not any(epoch.accuracy > kept.accuracy and epoch.kept <= kept.kept for epoch in later)
    assert kept.accuracy >= alike[0].accuracy
    assert kept.kept <= alike[0].kept


@given(history=HISTORIES, patience=st.integers(1, 3))
def test_epochs_below_are_counted_from_the_last_fall_of_the_share(history, patience):
    _, epochs = seen(history, 0.5, patience)
    least, below = None, 0
    for epoch in epochs[:-1]:
        thousandths = int(1000 * epoch.kept)
        if epoch.accuracy >= 0.5:
            below = below if least is not None and thousandths >= least else 0
            least = thousandths if least is None else min(least, thousandths)
        elif least is not None:
            below += 1
        assert below < patience
    if len(epochs) < len(history):
        assert least is not None
        assert below == patience - 1
        assert epochs[-1].accuracy < 0.5


def test_by_hand():
    choice, _ = seen([(4, 30), (1, 5), (2, 29), (3, 30), (3, 28), (2, 11), (4, 12), (0, 1)], 0.5)
    assert choice.chosen[1] == 5
    assert choice.waited == 1
    choice, _ = seen([(2, 15), (3, 15), (4, 16), (3, 14), (4, 13)], 0.5)
    assert choice.chosen[1] == 4


@given(history=HISTORIES, share=st.integers(0, 30), patience=st.none() | st.integers(1, 4))
def test_the_first_epoch_of_a_share_ends_the_search(history, share, patience):
    choice = ByShare(share / 10000)
    epochs = []
    for i, (right, kept) in enumerate(history):
        epochs.append(Epoch(i, right / 4, kept / 10000, 0.0, 0.0))
        choice.see(epochs[-1], i)
        if choice.ended(patience):
            break
    differences = [epoch.accuracy - epoch.kept for epoch in epochs]
    best = differences.index(max(differences))
    assert [epoch.kept <= share / 10000 for epoch in epochs] == [False] * (len(epochs) - 1) + [choice.reached]
    if choice.reached:
        assert choice.chosen == (epochs[-1], len(epochs) - 1)
    else:
        assert choice.chosen == (epochs[best], best)
        assert patience is None or len(epochs) - 1 - best <= patience
        assert len(epochs) == len(history) or len(epochs) - 1 - best == patience
