"""Test a trained BasicSR model on the `datasets.test*` of a YAML: `python -m finpercep_plugin.test -opt X.yml
[--launcher ...]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finpercep_plugin.integrations.basicsr import install
from finpercep_plugin.integrations.entry import blame, leave_group, open_log, read_options, run

__all__ = ['main', 'test_pipeline']

install()  # at import: a spawned worker imports this module before it unpickles a BasicSR data set


def test_pipeline(root_path: str, opt: Mapping[str, Any] | str | None = None) -> Any:
    """Validate the model of the options on every test set.

    Args:
        root_path: the folder that results/ is made in.
        opt: the content of a YAML file, its path, or None for sys.argv.

    Returns:
        The model.

    Raises:
        ConfigError: the options are wrong.
    """
    opt, _, _ = read_options(root_path, opt, is_train=False)
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.models import build_model
    from basicsr.utils import make_exp_dirs

    make_exp_dirs(opt)
    logger = open_log(opt, 'test')
    loaders = []
    for phase, section in sorted(opt['datasets'].items()):
        with blame(f'$.datasets.{phase}'):
            dataset = build_dataset(section)
        loaders.append(build_dataloader(dataset, section, num_gpu=opt['num_gpu'], dist=opt['dist']))
    with blame('$'):
        model = build_model(opt)
    for loader in loaders:
        logger.info(f'Testing {loader.dataset.opt["name"]}...')
        model.validation(loader, opt['name'], None, (opt.get('val') or {}).get('save_img', False))
    leave_group()
    return model


test_pipeline.__test__ = False  # its name is BasicSR's; pytest need not collect it


def main(argv: list[str] | None = None) -> int:
    return run(test_pipeline, argv)


if __name__ == '__main__':
    raise SystemExit(main())
