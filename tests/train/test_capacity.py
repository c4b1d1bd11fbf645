from hypothesis import given
from hypothesis import strategies as st

from terrafm.clusters.node import Node
from terrafm.train.driver.capacity import can_grow, fitting_workers, reading_cpus

nodes = st.lists(
    st.builds(
        lambda cpus, gpus, going: Node("id", "name", {"CPU": cpus, "GPU": gpus}, going),
        st.integers(0, 8).map(lambda n: n / 2),
        st.integers(0, 3).map(float),
        st.sampled_from([None, None, None, 0.0, 1e9]),
    ),
    max_size=6,
)


spares = st.sampled_from([{}, {"CPU": 0.5}, {"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 0.5, "GPU": 1.0}])


@given(
    nodes, st.sampled_from([0.5, 1.0, 1.5]), st.sampled_from([0.0, 1.0]), st.integers(0, 9), spares
)
def test_workers_fit_each_on_one_node_and_leave_room_for_others(found, cpu, gpu, most, reserved):
    workers = fitting_workers(found, {"CPU": cpu, "GPU": gpu}, most, reserved)
    staying = [node.available for node in found if node.going_at is None]

    def possible(number):
        """By trying: one worker after the other onto any node that still holds it."""
        left = [dict(node) for node in staying]
        for _ in range(number):
            place = next((n for n in left if n["CPU"] >= cpu and n["GPU"] >= gpu), None)
            if place is None:
                return False
            place["CPU"] -= cpu
            place["GPU"] -= gpu
        gpus = sum(node["GPU"] for node in left) - reserved.get("GPU", 0)
        cpus = sum(node["CPU"] for node in left) - reserved.get("CPU", 0)
        return number == 0 or (cpus > 0 and gpus >= 0)

    assert 0 <= workers <= most
    assert possible(workers)
    assert workers == most or not possible(workers + 1)


def test_rays_rounding_costs_no_worker():
    node = Node("id", "name", {"CPU": 2.9999999})
    assert fitting_workers([node, node], {"CPU": 1.5}, 9) == 3


@given(nodes, st.sampled_from([0.5, 1.0, 1.5]), st.sampled_from([0.0, 1.0]), st.integers(1, 9))
def test_every_worker_finds_a_place_to_read_on_one_node(found, cpu, gpu, most):
    need = {"CPU": cpu, "GPU": gpu}
    workers = fitting_workers(found, need, most)
    if not workers:
        return
    each = reading_cpus(found, need, workers)
    # As Ray places them: the node with the most CPUs first.
    left = sorted(
        (dict(node.available) for node in found if node.going_at is None),
        key=lambda node: -node["CPU"],
    )
    for _ in range(workers):
        place = next(n for n in left if n["CPU"] >= cpu and n["GPU"] >= gpu)
        place["CPU"] -= cpu
        place["GPU"] -= gpu
    sizes = [1.0] * int(each) if each >= 1 else [each]
    for size in sizes * workers:
        place = next(n for n in left if n["CPU"] >= size - 1e-6)
        place["CPU"] -= size
    if each >= 1:
        # No worker could have another whole CPU.
        assert sum(int(n["CPU"] + 1e-6) for n in left) < workers


@given(nodes, st.sampled_from([0.5, 1.0, 1.5]), st.integers(1, 9), spares)
def test_who_reads_leaves_room_for_a_validation(found, cpu, most, reserved):
    need = {"CPU": cpu}
    workers = fitting_workers(found, need, most, reserved)
    if not workers:
        return
    each = reading_cpus(found, need, workers, reserved)
    assert 0 < each <= reading_cpus(found, need, workers)
    staying = sum(node.available["CPU"] for node in found if node.going_at is None)
    assert staying - workers * (cpu + each) >= reserved.get("CPU", 0) - 1e-6


def test_a_validation_takes_of_the_node_with_the_most():
    found = [Node("id", "name", {"CPU": cpus}) for cpus in (2.0, 5.0)]
    assert reading_cpus(found, {"CPU": 1.0}, 1) == 6
    # Left are 4 and 2, of which 2 and 2 stay.
    assert reading_cpus(found, {"CPU": 1.0}, 1, {"CPU": 2.0}) == 4


def test_halves_on_two_nodes_are_no_whole():
    found = [Node("id", "name", {"CPU": cpus}) for cpus in (1.0, 2.0, 2.0)]
    assert reading_cpus(found, {"CPU": 1.5}, 2) == 0.5


def test_a_single_machine_shares_what_is_left():
    found = [Node("id", "name", {"CPU": 8.0})]
    assert reading_cpus(found, {"CPU": 1.0}, 2) == 3
    assert reading_cpus(found, {"CPU": 3.75}, 2) == 0.25


@given(
    st.lists(st.integers(0, 8).map(lambda n: n / 2), min_size=1, max_size=5),
    st.sampled_from([0.5, 1.0, 1.5]),
    st.integers(1, 4),
    spares,
    st.data(),
)
def test_a_group_that_can_grow_is_larger_when_it_starts_again(totals, cpu, most, reserved, data):
    need, reserved = {"CPU": cpu}, {"CPU": reserved.get("CPU", 0.0)}
    old = data.draw(st.integers(1, len(totals)))
    before = [Node(str(i), "", {"CPU": cpus}) for i, cpus in enumerate(totals[:old])]
    workers = fitting_workers(before, need, most, reserved)
    if not workers:
        return
    each = reading_cpus(before, need, workers, reserved)
    left = dict(enumerate(totals))
    occupied = set()
    for _ in range(workers):
        place = max(range(old), key=left.__getitem__)
        occupied.add(str(place))
        left[place] -= cpu
    # Since then machines have come, and whoever reads lies anywhere.
    for size in ([1.0] * int(each) if each >= 1 else [each]) * workers:
        place = data.draw(st.sampled_from([i for i in left if left[i] >= size - 1e-6]))
        left[place] -= size
    now = [Node(str(i), "", {"CPU": cpus}) for i, cpus in left.items()]
    if can_grow(now, occupied, need, workers * each, reserved):
        again = [Node(str(i), "", {"CPU": cpus}) for i, cpus in enumerate(totals)]
        assert fitting_workers(again, need, workers + 1, reserved) == workers + 1


def test_who_reads_on_a_new_machine_does_not_keep_the_group_from_it():
    # One worker on a machine of two CPUs; another came, and the data worker went there.
    now = [Node("old", "", {"CPU": 0.5}), Node("new", "", {"CPU": 1.5})]
    assert can_grow(now, {"old"}, {"CPU": 1.5}, reading=0.5)
    assert not can_grow(now, {"old", "new"}, {"CPU": 1.5}, reading=0.5)
    assert not can_grow(now, {"old"}, {"CPU": 1.5}, reading=0.5, reserved={"CPU": 1.0})
    assert not can_grow([Node("new", "", {"CPU": 1.5}, 0.0)], {"old"}, {"CPU": 1.5}, reading=0.5)
