from terrafm.train.driver.monitor import find_hung_rank, patience_for
from terrafm.train.worker.control import Beat

NOW = 1000.0


def beat(rank, step=5, phase="computing", silent=0.0, busy=300.0):
    return Beat(rank, "node", "host", 100 + rank, step, phase, NOW - busy, NOW - silent)


def test_a_start_has_time_for_imports_however_short_the_timeout():
    assert patience_for(12, training=True) == 12
    assert patience_for(12, training=False) == 180
    assert patience_for(600, training=False) == 1800


def test_the_rank_that_others_wait_for_is_named():
    named = {
        "rank 2 never started": [beat(0), beat(1)],
        "rank 1 (process 101 on host) has been silent for 40 s": [
            beat(0), beat(1, silent=40), beat(2)
        ],
        "rank 2 (process 102 on host) is still at step 4: writing a checkpoint": [
            beat(0), beat(1), beat(2, step=4, phase="writing a checkpoint")
        ],
        "rank 0 (process 100 on host) has been waiting for data for 300 s": [
            beat(0, phase="waiting for data"), beat(1), beat(2)
        ],
        "all 3 ranks are computing at step 5": [beat(0), beat(1), beat(2)],
    }  # fmt: skip
    for text, beats in named.items():
        assert find_hung_rank(beats, 3, NOW) == text


def test_alone_or_two_of_different_opinion():
    alone = find_hung_rank([beat(0, phase="waiting for data")], 1, NOW)
    assert alone == "rank 0 (process 100 on host) has been waiting for data for 300 s"
    both = find_hung_rank([beat(0), beat(1, phase="waiting for data")], 2, NOW)
    assert both == (
        "rank 0 (process 100 on host) is computing; "
        "rank 1 (process 101 on host) is waiting for data"
    )
