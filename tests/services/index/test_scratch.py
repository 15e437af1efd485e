import subprocess
import sys
from pathlib import Path

from services.index.upkeep.scratch import LOCK, PREFIX, Scratch


def test_the_folder_goes_away_with_its_owner(tmp_path):
    scratch = Scratch(tmp_path)
    folder = scratch.new("segment")
    folder.mkdir()
    (folder / "file").write_text("x")
    scratch.close()
    assert not scratch.folder.exists()


def test_names_are_never_used_twice_and_foreign_folders_are_left_alone(tmp_path):
    scratch = Scratch(tmp_path / "scratch")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    assert scratch.new("a") != scratch.new("a")
    scratch.discard([foreign, scratch.folder / "gone"])
    scratch.close()
    assert foreign.exists()


def test_a_folder_goes_with_the_last_one_in_it(tmp_path, eventually):
    scratch = Scratch(tmp_path)
    parent = scratch.new("snapshot")
    first, second = parent / "000", parent / "001"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    scratch.discard([first])
    eventually(lambda: not first.exists(), "the first is removed")
    assert second.exists()
    scratch.discard([second])
    eventually(lambda: not parent.exists(), "their parent goes, too")
    assert scratch.folder.exists()
    scratch.close()


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_are_not(tmp_path):
    code = (
        "import sys, os, pathlib; from services.index.upkeep.scratch import Scratch;"
        "print(Scratch(pathlib.Path(sys.argv[1])).folder, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    dead = Path(done.stdout.strip())
    assert dead.exists()
    living = Scratch(tmp_path)
    assert not dead.exists()
    other = Scratch(tmp_path)
    assert (living.folder / LOCK).exists()
    assert len([*tmp_path.glob(f"{PREFIX}*")]) == 2
    other.close()
    living.close()


def test_a_lock_that_is_a_link_leaves_alone_what_it_leads_to(tmp_path):
    """Anybody may make such a folder where temporary files go."""
    victim, planted = tmp_path / "victim", tmp_path / "scratch" / f"{PREFIX}planted"
    victim.write_text("precious")
    planted.mkdir(parents=True)
    (planted / LOCK).symlink_to(victim)
    Scratch(tmp_path / "scratch").close()
    assert victim.read_text() == "precious"
    assert planted.is_dir()
