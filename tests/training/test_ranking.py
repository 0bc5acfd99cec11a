import numpy as np
import pytest
import torch

from recengine.data import leave_last_out
from recengine.training import checkpoint
from recengine.training.encode import encode
from recengine.training.ranking import RankingTask


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
