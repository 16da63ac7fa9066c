from finpercep_plugin.report.chart import COLOURS, Mark
from finpercep_plugin.report.experiment.charts import chart_groups, single_values, stage_marks
from finpercep_plugin.report.experiment.record import read_experiment


def charts(groups):
    return {chart.title: chart for group in groups for chart in group.charts}


def test_everything_that_was_logged_is_drawn(staged):
    record = read_experiment(staged.folder)
    shown = [xy for chart in charts(chart_groups([record])).values() for xy in chart.series.values()]
    hidden = [tag for tag, xy in record.scalars.items() if xy not in shown]
    assert [tag for tag in hidden if not tag.startswith('monitor_')] == ['stage']


def test_a_mean_and_its_spread_share_a_chart(staged):
    record = read_experiment(staged.folder)
    groups = chart_groups([record])
    assert [group.heading for group in groups] == ['Reward', 'Losses', 'Validation', 'Algorithm and optimiser']
    reward = charts(groups)['Reward R of the training batches']
    assert reward.series == {'mean': record.scalars['reward'], 'spread': record.scalars['reward_std']}
    assert reward.marks == [Mark(1, 'RM_0'), Mark(21, 'RM_1')] and reward.smoothing
    assert charts(groups)['held (held-out reward)'].series == {'val': ([20.0, 40.0], [2.0, 4.0])}
    assert not charts(groups)['psnr'].smoothing and 'Loss: total' in charts(groups)


def test_several_experiments_share_charts_in_their_colours(staged, make_run):
    other = make_run('other').begin()
    other.step(1, reward=1.0, l_total=5.0)
    records = [read_experiment(staged.folder), read_experiment(other.folder)]
    drawn = charts(chart_groups(records))
    assert list(drawn['Reward R of the training batches: mean'].series) == ['run', 'other']
    assert drawn['Reward R of the training batches: spread'].series['other'] == ([], [])
    assert drawn['Loss: total'].series['other'] == ([1.0], [5.0])


def test_stages_of_several_experiments(staged, make_run):
    other = make_run('other').begin()
    for i, stage in ((1, 0), (30, 1)):
        other.step(i, stage=float(stage))
    one, two = read_experiment(staged.folder), read_experiment(other.folder)
    assert stage_marks([one, one]) == [Mark(1, 'RM_0'), Mark(21, 'RM_1')]
    assert stage_marks([one, two]) == [Mark(21, '', COLOURS[0]), Mark(30, '', COLOURS[1])]
    assert stage_marks([read_experiment(make_run('plain').folder)]) == []


def test_skipped_steps_show_only_if_there_were_some(make_run):
    made = make_run().begin()
    made.step(1, bad_steps=0.0, grad_norm=1.0)
    assert 'Skipped steps' not in charts(chart_groups([read_experiment(made.folder)]))
    made.step(2, bad_steps=1.0, grad_norm=1.0)
    assert 'Skipped steps' in charts(chart_groups([read_experiment(made.folder)]))


def test_single_values_are_told_from_curves(make_run):
    made = make_run().begin()
    made.writer.add_scalar('metrics/val/psnr', 20.5, 4)
    made.step(1, reward=1.0)
    made.step(2, reward=1.5)
    groups = {group.heading: group for group in chart_groups([read_experiment(made.folder)])}
    assert single_values(groups['Validation']) == {'psnr': {'val': 20.5}}
    assert single_values(groups['Reward']) == {}


def test_reward_models_grown_within_have_charts(make_run):
    made = make_run().begin()
    made.step(1, reward=1.0)
    made.say('CCL: RM_1 is trained, in growth/stage_1')
    made.step(3, l_map=0.5, score=1.0)
    (group,) = [g for g in chart_groups([read_experiment(made.folder)]) if 'switch' in g.heading]
    assert group.heading == 'RM_1, trained at the switch'
    assert [(chart.title, chart.series) for chart in group.charts] == [('Loss: map', {'losses/l_map': ([3.0], [0.5])})]
