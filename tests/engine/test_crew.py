"""Threads that other processes starve: given back within a window, tried again later."""

from turbosparse.engine.crew import RETRY, WINDOW, Crew


class Machine:
    """Steps of 10 ms on `cores` cores, of which others take some."""

    def __init__(self, most: int, cores: float) -> None:
        self.now = self.spent = 0.0
        self.free = cores
        self.tried: list[int] = []
        self.crew = Crew(most, self.tried.append, wall=lambda: self.now, cpu=lambda: self.spent)

    def work(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            with self.crew.at_work():
                self.now += 0.01
                self.spent += 0.01 * min(self.crew.num_threads, self.free)


def test_all_threads_stay_while_they_have_their_cores():
    machine = Machine(most=2, cores=1.8)  # the API process takes a fifth of one
    machine.work(60)
    assert machine.tried == [2]


def test_a_busy_neighbour_costs_one_window():
    machine = Machine(most=2, cores=2)
    machine.work(1)
    machine.free = 1.3
    machine.work(2 * WINDOW + 0.02)
    assert machine.crew.num_threads == 1


def test_many_threads_give_up_only_what_is_missing():
    machine = Machine(most=16, cores=13.5)
    machine.work(1)
    assert machine.crew.num_threads == 13


def test_all_threads_are_tried_again_and_less_often_in_vain():
    machine = Machine(most=2, cores=1)
    machine.work(600)
    tries = machine.tried.count(2)
    assert 600 / RETRY[1] < tries < 600 / RETRY[1] + 6
    machine.free = 2
    machine.work(RETRY[1] + 1)
    assert machine.crew.num_threads == 2


def test_one_thread_is_not_watched():
    machine = Machine(most=1, cores=0.1)
    machine.work(1)
    assert machine.tried == [1]
