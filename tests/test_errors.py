import pytest

from imagenet_rn50.errors import EXIT_WRONG_INPUT, InputError, RankError, exit_on_input_error


@pytest.mark.parametrize("kind", [InputError, RankError])
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_first_rank_of_a_machine_speaks_and_others_of_what_they_may_meet_alone(
    kind, rank, monkeypatch, capsys
):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise kind("no such thing")
    assert ended.value.code == EXIT_WRONG_INPUT
    is_silent = rank == "1" and kind is InputError
    assert capsys.readouterr().err == ("" if is_silent else "error: no such thing\n")
