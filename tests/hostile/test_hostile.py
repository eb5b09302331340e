"""Every hostile case is refused with one clear error before it does harm; and would do harm."""

import pickle
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from canary import module, pickled
from cases import CASES, PASSWORD, Case, Ground, grounds, try_case

from storage_schemas.errors import RecipeError


@pytest.fixture(scope="module")
def ground(tiny, tmp_path_factory):
    with grounds(tmp_path_factory.mktemp("hostile"), tiny) as make:
        yield make


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_is_refused_before_any_harm(case, ground):
    verdict = try_case(case, ground())
    assert verdict.is_refused, verdict.detail


def test_a_case_that_is_accepted_is_none_that_is_refused(ground):
    case = Case(name="tame", attack=lambda _: None, error=RecipeError, says="")
    assert try_case(case, ground()).detail.startswith("accepted")


def test_harm_before_an_error_is_no_refusal(ground):
    def attack(place: Ground) -> None:
        place.canary.write_text("dead")
        raise RecipeError("too late")

    case = Case(name="late", attack=attack, error=RecipeError, says="too late")
    assert try_case(case, ground()).detail.startswith("harm was done")


def test_an_error_that_repeats_a_password_is_no_refusal(ground):
    def attack(_: Ground) -> None:
        raise RecipeError(f"not {PASSWORD}")

    case = Case(name="loud", attack=attack, error=RecipeError, says="not")
    assert not try_case(case, ground()).is_refused


def test_the_pickle_does_harm_where_it_is_unpickled(tmp_path):
    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").read_text() == "unpickled"


def test_the_module_does_harm_where_it_is_imported(tmp_path):
    exec(module(tmp_path / "canary"))
    assert (tmp_path / "canary").read_text() == "imported"
