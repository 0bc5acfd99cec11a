import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recengine.data import leave_last_out
from recengine.training import checkpoint
from recengine.training.encode import encode
from recengine.training.metrics import ndcg_at, target_places
from recengine.training.ranking import RankingTask, order
from recengine.training.retrieval import top_candidates


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_negatives_are_drawn_as_the_retrieval_offers_but_for_a_share(
    trained, planted, small_config, share
):
    encoded = encode(leave_last_out(planted), 5)
    recommender = checkpoint.load(trained[0])
    ranking = small_config.ranking.model_copy(update={"hard_share": share})
    config = small_config.model_copy(update={"ranking": ranking})
    task = RankingTask(recommender.ranking, recommender.retrieval, encoded, config)
    positions = encoded.split.validation
    taken = encoded.taken_before(positions)
    drawn = task._proposal(*encoded.user_batch(positions), taken)

    with torch.no_grad():
        users = recommender.retrieval.users(*encoded.user_batch(positions)).numpy()
    cosines = users @ recommender.item_vectors().numpy().T
    odds = np.where(taken, 0, np.exp(cosines / config.retrieval.temperature))
    offered = odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(
        drawn, share * offered + (1 - share) / encoded.num_items, rtol=1e-4, atol=1e-7
    )


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest new tensor has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


@torch.no_grad()
def test_the_weight_of_the_retrieval_score_is_that_of_the_whole_catalog_in_less_memory(
    trained, planted, small_config
):
    encoded = encode(leave_last_out(planted), 5)
    recommender = checkpoint.load(trained[0])
    ranking, positions = recommender.ranking, encoded.split.validation
    task = RankingTask(ranking, recommender.retrieval, encoded, small_config)
    task.on_validation_epoch_start()
    for batch in torch.from_numpy(positions).split(40):
        task.validation_step(batch)
    with Largest() as largest:
        task.on_validation_epoch_end()
    chosen = ranking.ranker.score_weight.item()
    assert largest.elements <= len(positions) * small_config.num_candidates

    _, rows, cosines = top_candidates(recommender.retrieval, encoded, positions, 20)
    table, targets = ranking.items(*encoded.catalog()), encoded.targets(positions)
    ndcgs = {}
    for share in small_config.ranking.score_shares:
        weight = share / small_config.retrieval.temperature
        ranking.ranker.score_weight.fill_(weight)
        scores = order(ranking, encoded, positions, rows, cosines, table)
        ndcgs[weight] = ndcg_at(target_places(scores, targets), 10)
    assert len(set(ndcgs.values())) > 1
    assert ndcgs[chosen] == max(ndcgs.values())
