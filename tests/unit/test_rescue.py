"""Data that cannot be read any more does not cost the updates that were made."""

from types import SimpleNamespace

import pytest

from fairseq.errors import DataError
from fairseq.training.loop import rescuing


class Run:
    """Updates of two batches each; the batch at ``bad`` cannot be read."""

    def __init__(self, bad):
        self.read = self.updates = 0
        self.saved = []
        self.store = SimpleNamespace(wait=lambda: None)
        for _ in rescuing(self.groups(bad), self, self):
            self.updates += 1

    def groups(self, bad):
        while self.read < 8:
            for _ in range(2):
                if self.read == bad:
                    raise SavedError(self.saved)
                self.read += 1
            yield ["one", "two"]

    def state_dict(self):
        return {"read": self.read}

    def get_num_updates(self):
        return self.updates

    def save_checkpoint(self, epoch_itr, val_loss, forced, position):
        self.saved.append((self.updates, position["read"]))


class SavedError(DataError):
    def __init__(self, saved):
        super().__init__("damaged")
        self.saved = saved


@pytest.mark.parametrize("bad, saved", [(0, []), (1, []), (2, [(1, 2)]), (5, [(2, 4)])])
def test_saved_as_of_the_last_update(bad, saved):
    with pytest.raises(SavedError) as caught:
        Run(bad)
    assert caught.value.saved == saved


def test_nothing_is_saved_where_all_is_well():
    assert Run(100).saved == [] and Run(100).updates == 4
