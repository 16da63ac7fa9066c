import pytest

from finpercep_plugin.ranks import Ranks
from finpercep_plugin.scoring.journal import Entry, Journal, entry_key


def entry(key, value=0.1):
    return Entry(key, 'ours/a.png', 'psnr', {'psnr': value}, (8, 6))


def test_what_is_written_is_read_again_to_the_last_digit(tmp_path):
    journal = Journal(tmp_path / 'c')
    journal.open()
    journal.add([entry('k', 1 / 3), entry('l')])
    assert Journal(tmp_path / 'c').get('k') == entry('k', 1 / 3)
    assert len(Journal(tmp_path / 'c')) == 2
    assert Journal(tmp_path / 'c').get('m') is None


def test_a_torn_line_is_left_out_and_cut_off(tmp_path):
    journal = Journal(tmp_path)
    journal.open()
    journal.add([entry('k'), entry('l')])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-9])
    again = Journal(tmp_path)
    assert again.get('k') and again.get('l') is None
    again.open()
    again.add([entry('l')])
    assert journal.path.read_bytes() == whole


@pytest.mark.parametrize('line', [b'{"key": "k"}', b'[1]', b'{"key": 1, "more": 2}', b'\xff'])
def test_lines_of_another_version_are_left_out(tmp_path, line):
    (tmp_path / '0of1.jsonl').write_bytes(line + b'\n')
    assert len(Journal(tmp_path)) == 0


def test_processes_have_a_file_each_and_read_all(tmp_path):
    for rank in range(2):
        journal = Journal(tmp_path, Ranks(rank, 2))
        journal.open()
        journal.add([entry(f'k{rank}')])
    assert sorted(p.name for p in tmp_path.glob('*.jsonl')) == ['0of2.jsonl', '1of2.jsonl']
    assert Journal(tmp_path).get('k0') and Journal(tmp_path).get('k1')


def test_a_fresh_start_forgets_all_files_and_none_of_this_run(tmp_path):
    for ranks in (Ranks(0, 1), Ranks(0, 2), Ranks(1, 2)):
        journal = Journal(tmp_path, ranks)
        journal.open()
        journal.add([entry(f'{ranks.rank}{ranks.world}')])
    assert len(Journal(tmp_path, Ranks(1, 2), fresh=True)) == 0
    assert sorted(p.name for p in tmp_path.glob('*.jsonl')) == ['0of1.jsonl', '0of2.jsonl']
    second = Journal(tmp_path, Ranks(1, 2))
    second.open()
    assert len(Journal(tmp_path, Ranks(0, 2), fresh=True)) == 0
    assert [p.name for p in tmp_path.glob('*.jsonl')] == ['1of2.jsonl']


def test_nothing_is_kept_without_a_folder():
    journal = Journal()
    journal.open()
    journal.add([entry('k')])
    assert journal.get('k') and journal.map_path('k') is None


def test_keys_follow_the_version_the_files_and_the_text():
    keys = {
        entry_key('v', {'sr': 'a'}),
        entry_key('w', {'sr': 'a'}),
        entry_key('v', {'sr': 'b'}),
        entry_key('v', {'gt': 'a'}),
        entry_key('v', {'sr': 'a'}, 't'),
    }
    assert len(keys) == 5
